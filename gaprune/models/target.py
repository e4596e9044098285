"""Load the network to prune: safely, as a private frozen copy that has run once."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.errors import InputError, describe, first_line, unknown_name
from gaprune.io.user_code import call_user, load_function
from gaprune.io.weights import (
    apply_state,
    left_out_note,
    load_checkpoint,
    sha256_of,
    tensors_of,
)
from gaprune.masks.supermask import Layout, masked_weights
from gaprune.models import parametrizations
from gaprune.models.arguments import take_arguments
from gaprune.models.expert_routing import leave_out_removed
from gaprune.models.fixed_function import TRIED, make_fixed
from gaprune.models.forward import deterministic, standard_torch
from gaprune.models.forward_hooks import flatten_pictures
from gaprune.models.input_spec import (
    InputOptions,
    InputSpec,
    resolve_inputs,
    sample_inputs,
    takes_flat_pictures,
)
from gaprune.models.name_patterns import layer_patterns
from gaprune.models.network import DenseNetwork, LoadedNetwork
from gaprune.models.prunable import check_structure, find_prunable
from gaprune.models.sources import SOURCES, is_sourced, load_source
from gaprune.models.sources.outputs import (
    check_one_input,
    choose_output,
    choose_tower,
    describe_outputs,
    tower_names,
)
from gaprune.models.zoo import ZOO

LayerPatterns = str | nn.Module | type[nn.Module] | Sequence[str | nn.Module | type[nn.Module]]
"""Names, globs, layers and types of layers."""


@dataclass(frozen=True, eq=False)
class Target(DenseNetwork):
    """A private copy of a trained network to prune, which is also the teacher of its candidates.

    Attributes:
        name, origin: the user's name for it; where network and weights came from.
        weights_sha256: hash of all parameters and buffers.
        zoo: its name in the zoo, or None; set even if other weights were loaded into it.
        prune_also, ignore: patterns of further prunable parameters, and of those left whole.
        output: the output that was chosen of a network in memory, if it has several.
        folded: names of weights that were computed from other parameters and are plain here.
    """

    name: str
    weights_sha256: str
    zoo: str | None
    origin: str
    prune_also: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    output: str | int | None = None
    folded: tuple[str, ...] = ()

    def example(self) -> Tensor:
        """Return one random input `[1, *inputs.shape]`."""
        return sample_inputs(self.inputs, 1, self.dtype).to(self.device)

    def masked_state(self, masks: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the state dict under masks of prunable weights, by name, on the CPU.

        Other bits are unchanged. Tensors are contiguous and share no memory. Entries that are no
        tensors, such as those of `get_extra_state`, are copies.
        """
        masks = {name: mask.to(self.device) for name, mask in masks.items()}
        masked = masked_weights({name: self.weights[name] for name in masks}, masks)
        # a tied parameter has several names in the state dict, but one address
        by_address = {
            (self.weights[name].data_ptr(), weight.shape): weight for name, weight in masked.items()
        }
        state: dict[str, Any] = self.model.state_dict()  # with the versions of its modules
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensor = by_address.get((value.data_ptr(), value.shape), value)
                state[name] = tensor.detach().to("cpu", copy=True).contiguous()
            else:
                state[name] = copy.deepcopy(value)
        return state

    def masked_copy(self, masks: Mapping[str, Tensor]) -> nn.Module:
        """Return a copy of the network with masks written into its weights (`masked_state`)."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.masked_state(masks))
        return model


@standard_torch()
def load_target(  # noqa: PLR0913 # every argument is an option of the command line
    spec: str,
    *,
    weights: Path | None = None,
    weights_key: str | None = None,
    inputs: InputOptions | None = None,
    prune_also: Sequence[str] = (),
    ignore: Sequence[str] = (),
    device: str | torch.device = "cpu",
    output: str | int | None = None,
    tower: str | None = None,
    allow_download: bool = False,
    fold_parametrizations: bool | None = None,
    example_inputs: object = None,
) -> Target:
    """Load the network that a command line names.

    Args:
        spec: a zoo name, `timm:NAME`, `hf:NAME`, or `path/to/file.py:factory` (or
            `package.module:factory`), a function without arguments that returns the network. The
            file is code and is run.
        weights: a checkpoint (see `load_checkpoint`), instead of the network's own weights.
        weights_key: which of several state dicts in that file, such as `state_dict_ema`.
        inputs: what the user states about the input (see `resolve_inputs`).
        prune_also: further parameters to prune; for patterns see `matching_parameters`.
        ignore: patterns of parameters to leave whole; see `find_prunable`.
        device: where to run the network.
        output: which output to compare, if the network has several (see `choose_output`).
        tower: a part of the network that is pruned alone, see `choose_tower`; names in results are
            those of the part.
        allow_download: whether pretrained weights of `timm:` or `hf:` may be downloaded.
        fold_parametrizations: whether computed weights are made plain, as those of weight_norm and
            spectral_norm; None does so for `hf:`.
        example_inputs: arguments of a network with several inputs, see `take_arguments`.

    Raises:
        InputError: an argument is wrong, or the network cannot be pruned.
    """
    if weights_key is not None and weights is None:
        raise InputError("weights_key: chooses from the file of --weights=FILE, which is not given")
    # a scheme such as `timm:` is checked first: a factory's path may contain a colon too
    fold = spec.startswith("hf:") if fold_parametrizations is None else fold_parametrizations
    if is_sourced(spec):
        loaded = load_source(
            spec,
            weights=weights,
            weights_key=weights_key,
            output=output,
            tower=tower,
            allow_download=allow_download,
        )
    else:
        entry = ZOO.get(spec)
        model = entry.factory() if entry else _from_factory(spec, fold=fold)
        # the user's weights replace those of the zoo
        checkpoint = weights or (entry.checkpoint if entry else None)
        origin = f"zoo network {spec}" if entry else f"factory {spec}"
        if checkpoint is not None:
            # A sparse file states sizes: they are compared before memory is taken.
            limit = sum(16 * value.numel() for value in model.state_dict().values())
            read = load_checkpoint(checkpoint, key=weights_key, max_bytes=limit)
            if fold and not _names_computed(model, read.state):
                parametrizations.fold_parametrizations(model)
            note = left_out_note(apply_state(model, read.state))
            if weights is not None:
                origin += f", {read.origin}{note}"
        if tower is not None:
            model, origin = choose_tower(model, tower), f"{origin}, tower {tower}"
        if output is not None:
            choose_output(model, output)
        loaded = LoadedNetwork(
            model,
            entry.inputs if entry and tower is None else None,
            origin,
            spec if entry else None,
        )
    selection = prune_also, ignore, None
    options = inputs or InputOptions()
    rest: dict[str, Any] = {"fold": fold, "example_inputs": example_inputs}
    return _make_target(loaded, spec, options, selection, device, share_weights=True, **rest)


@standard_torch()
def target_from_module(  # noqa: PLR0913 # what is known about a network
    model: nn.Module,
    *,
    inputs: InputOptions | None = None,
    name: str | None = None,
    prune_also: LayerPatterns = (),
    ignore: LayerPatterns = (),
    device: str | torch.device = "cpu",
    output: str | int | None = None,
    share_weights: bool = False,
    fold_parametrizations: bool = False,
    example_inputs: object = None,
) -> Target:
    """Make a target of a deep copy of a network; see `load_target`.

    Reports call it `name`, or after its class. `prune_also` and `ignore` may hold layers and types
    of layers.

    With `share_weights` its parameters share the memory of the network's, where they are on the
    same device: nobody may change these until the target is replaced by `Target.copied`.

    A network wrapped by `torch.compile`, `DataParallel` or `DistributedDataParallel` is unwrapped:
    parameters have the names of the inner network.

    Raises:
        InputError: the network cannot be pruned, copied or run on such inputs.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model: must be a torch.nn.Module, got {describe(model)}")
    if not isinstance(inputs, InputOptions | None):
        raise InputError(f"inputs: must be gaprune.InputOptions(…), got {describe(inputs)}")
    model = unwrapped(model)  # so that masks fit the names that the user knows
    origin = f"module {type(model).__module__}.{type(model).__qualname__}"
    loaded = LoadedNetwork(model, None, origin)
    selection = (
        layer_patterns(model, prune_also, "prune_also"),
        layer_patterns(model, ignore, "ignore"),
    )
    return _make_target(
        loaded,
        name or type(model).__name__,
        inputs or InputOptions(),
        (*selection, output),
        device,
        share_weights=share_weights,
        fold=fold_parametrizations,
        example_inputs=example_inputs,
    )


def _make_target(  # noqa: PLR0913 # what is known about a network
    loaded: LoadedNetwork,
    name: str,
    options: InputOptions,
    selection: tuple[Sequence[str], Sequence[str], str | int | None],
    device: str | torch.device,
    *,
    share_weights: bool,
    fold: bool,
    example_inputs: object,
) -> Target:
    check_structure(loaded.model, fold=fold)  # before copying: a pruned layer cannot be copied
    model = private_copy(loaded.model, device, share_weights=share_weights)
    leave_out_removed(model)
    if selection[2] is not None:
        choose_output(model, selection[2])
    folded: tuple[str, ...] = ()
    inputs = None if example_inputs is None else take_arguments(model, example_inputs)
    with deterministic(device):  # before the first kernel: torch reads the cuBLAS setting once
        if fold and any(parametrizations.computed_weights(model)):
            inputs = inputs or _inputs_of(model, options, loaded.inputs)
            example = sample_inputs(inputs, TRIED, next(model.parameters()).dtype).to(device)
            folded = parametrizations.fold_checked(model, example)
        weights = {key: w.detach() for key, w in find_prunable(model, *selection[:2]).items()}
        if example_inputs is None:
            check_one_input(model)
        state = tensors_of(model.state_dict())
        inputs = inputs or _inputs_of(model, options, loaded.inputs)
        layout = Layout.of(weights)
        source = sha256_of(state), loaded.zoo, loaded.origin
        prune_also, ignore = ((p,) if isinstance(p, str) else tuple(p) for p in selection[:2])
        target = Target(
            *(model, weights, layout, inputs, name, *source),
            *(prune_also, ignore, selection[2], folded),
        )
        _check_forward(target)
    return target


def _inputs_of(model: nn.Module, options: InputOptions, default: InputSpec | None) -> InputSpec:
    inputs = resolve_inputs(model, options, default)
    if takes_flat_pictures(model, inputs):
        model.register_forward_pre_hook(flatten_pictures)
    return inputs


def _names_computed(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Tell whether a checkpoint holds what a network computes weights from, not the weights."""
    plain = tuple(f".{weight.name}" for weight in parametrizations.computed_weights(model))
    return not any(f".{name}".endswith(plain) for name in state)


def private_copy(
    model: nn.Module, device: str | torch.device = "cpu", *, share_weights: bool = False
) -> nn.Module:
    """Return a deep copy on `device`, in evaluation mode, without gradients.

    With `share_weights` the parameters of the copy are views of the same memory if that is on
    `device`; buffers are always copied.

    Distinct parameters over the same memory become one tied parameter, under the first name.
    `InputError` if the network cannot be deep-copied, or there is no such device.
    """
    shared: dict[int, Tensor] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False)
        for parameter in model.parameters()
        # copies of other memory formats may get another one; inference tensors take no gradients
        if share_weights and parameter.is_contiguous() and not parameter.is_inference()
    }
    # these have gradient history, and are computed again before every pass
    for weight in parametrizations.attributes_of_hooks(model):
        shared[id(weight)] = weight.detach()
    try:
        with torch.no_grad():  # TorchScript records how it copies
            private = copy.deepcopy(model, shared)  # takes these in place of copies
    except Exception as error:  # a __deepcopy__ may raise anything
        raise InputError(
            f"model: {type(model).__name__} cannot be deep-copied "
            f"({type(error).__name__}: {error}); remove locks, files and tensors with gradient "
            "history from its attributes, or give it a __deepcopy__"
        ) from error
    _tie_shared_memory(model, private)
    # frozen: nothing may change a weight, and no gradient memory is needed
    for parameter in private.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    try:
        private.to(device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise InputError(f"device: cannot use {str(device)!r} ({error})") from error
    return private.eval()


def trainable_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy whose parameters take gradients; for errors see `private_copy`."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    private = private_copy(model, device)
    for parameter in private.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    return private


def _tie_shared_memory(original: nn.Module, private: nn.Module) -> None:
    owners: dict[object, str] = {}
    for name, tensor in original.named_parameters(remove_duplicate=False):
        if not tensor.numel():
            continue  # empty tensors all have the same address
        memory = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        owner = owners.setdefault(memory, name)
        if owner != name:  # deepcopy has made two parameters of one memory
            path, _, leaf = name.rpartition(".")
            setattr(private.get_submodule(path), leaf, private.get_parameter(owner))


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside `torch.compile`, `DataParallel` or `DistributedDataParallel`."""
    # torch.compile keeps the inner network in `_orig_mod`
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    inner = model.module if isinstance(model, wrappers) else getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def _from_factory(spec: str, *, fold: bool) -> nn.Module:
    file, colon, _ = spec.partition(":")
    if not colon or (file and not Path(file).suffix and not Path(file).exists()):
        problem = str(unknown_name("target", file, [*ZOO, *SOURCES] if colon else ZOO))
        if not colon and file.endswith(".py"):
            problem = f"target: {file} names no factory, as {file}:make would; {', '.join(ZOO)}"
        raise InputError(
            f"{problem}; or path/to/file.py:factory, package.module:factory, "
            f"{', '.join(s + ':NAME' for s in SOURCES)}"
        )
    factory = load_function(spec, "target")
    model = call_user(factory, where=f"target: factory {spec}")
    if not isinstance(model, nn.Module):
        raise InputError(
            f"target: factory {spec} must return a torch.nn.Module, got {type(model).__name__}"
        )
    model = unwrapped(model)
    check_structure(model, fold=fold)  # before weights are loaded: its message is clearer
    return model


def _check_forward(target: Target) -> None:
    """Run the network on random inputs; check its outputs, and that it is a fixed function."""
    spec = target.inputs
    shape = ",".join(map(str, spec.shape))
    inputs = sample_inputs(spec, TRIED, target.dtype).to(target.device)

    def check(output: object) -> Tensor:
        if problem := _output_problem(output):
            raise InputError(f"model: for inputs of shape {shape} its output {problem}")
        assert isinstance(output, Tensor)
        return output

    try:
        make_fixed(target.model, inputs, check)
    except InputError:  # of the check, or the chosen output does not exist
        raise
    except Exception as error:  # user code and torch raise any type for a wrong shape
        towers = tower_names(target.model)
        if len(towers) > 1:
            raise InputError(
                f"target: {type(target.model).__name__} does not run on one input "
                f"({type(error).__name__}: {first_line(error)}); prune one of its parts alone with "
                f"--tower: {', '.join(towers)}; or state all its inputs with --inputs=FILE.npz"
            ) from error
        raise InputError(
            f"input shape: the network does not accept {shape} (kind {spec.kind}; tried a batch "
            f"{list(inputs[:2].shape)} of {inputs.dtype}): {type(error).__name__}: {error}; state "
            "the shape of one input without the batch axis with --input-shape, its kind with "
            "--input-kind"
        ) from error


def _output_problem(output: object) -> str | None:
    if not isinstance(output, Tensor):
        return (
            f"must be one tensor; {describe_outputs(output)}; choose one with --output=NAME, or "
            "NAME.NAME inside another one, or wrap the network so that forward returns the logits "
            "or the embedding alone"
        )
    # the trial batch has two inputs
    if output.ndim == 0 or output.shape[0] != 2:
        return (
            f"must keep the batch as its first axis, got shape {list(output.shape)} for a batch of "
            "2; check --input-shape, or wrap the network"
        )
    if not output.is_floating_point():
        return f"must be of a floating type, got {output.dtype}; return logits, not classes"
    if not torch.isfinite(output).all():
        return (
            "must be finite, got NaN or Inf for random inputs; check the weights, and the input "
            "range with --range or --mean and --std"
        )
    return None
