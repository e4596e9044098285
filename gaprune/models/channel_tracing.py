"""Follow channels through a forward pass: which layers compute, join and read them.

Every element of an activation carries a label that says which output channel computed it.
Operations that only move elements (chunk, concatenate, pad, shuffle, …) are applied to the labels
themselves, so index maps are exact; operations on several elements join their labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from gaprune.models.channel_labels import ChannelLabels, stripped, varies
from gaprune.models.channel_slicing import num_inputs, num_outputs

# Layers that normalise or mix all of their channels, or have no input channels.
_MIXING = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    _InstanceNorm,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.Bilinear,
)


def _names(*lines: str) -> frozenset[str]:
    return frozenset(name for line in lines for name in line.split())


# Operations of ATen by name, without the underscore of in-place variants.
_MOVING = _names(
    "permute transpose t squeeze unsqueeze expand slice select split split_with_sizes unbind cat",
    "stack constant_pad_nd repeat roll flip unfold im2col index_select narrow diagonal",
    "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d",
    "replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle",
)
_RESHAPING = _names("view _unsafe_view reshape _reshape_alias")
_ELEMENTWISE = _names(
    "hardswish _prelu_kernel prelu native_dropout dropout where masked_fill _to_copy copy detach",
    "alias clone lift_fresh contiguous nan_to_num celu selu rrelu",
)
_ALONG_DIMENSIONS = _names(
    "mean sum amax amin max min var std var_mean std_mean prod logsumexp _softmax _log_softmax",
    "linalg_vector_norm norm cumsum argmax argmin any all",
)


def _split_sizes(arguments: Mapping[str, Any], _: int) -> tuple[int, int, int]:
    sizes = {int(size) for size in arguments["split_sizes"]}
    return 0, sizes.pop() if len(sizes) == 1 else 0, 1


def _sliced(arguments: Mapping[str, Any], size: int) -> tuple[int, int, int]:
    start, stop, stride = slice(*(arguments[key] for key in ("start", "end", "step"))).indices(size)
    return (start, stop - start, 1) if stride == 1 else (0, size // stride, stride)


# Operations that take parts of a dimension: arguments and its size → where a part starts, its
# length (0 if parts differ), and the distance of its elements.
_PARTS: dict[str, Callable[[Mapping[str, Any], int], tuple[int, int, int]]] = {
    "split": lambda arguments, _: (0, int(arguments["split_size"]), 1),
    "split_with_sizes": _split_sizes,
    "unbind": lambda *_: (0, 1, 1),
    "select": lambda *_: (0, 0, 1),
    "index_select": lambda *_: (0, 0, 1),
    "slice": _sliced,
    "channel_shuffle": lambda arguments, size: (0, size // int(arguments["groups"]), 1),
    "native_channel_shuffle": lambda arguments, size: (0, size // int(arguments["groups"]), 1),
    "pixel_shuffle": lambda a, size: (0, size // int(a["upscale_factor"]) ** 2, 2),
}
_SHUFFLED_DIMENSION = {"pixel_shuffle": -3, "channel_shuffle": 1, "native_channel_shuffle": 1}
_SPATIAL = ("avg_pool", "max_pool", "upsample_", "lp_pool")


class ChannelTracer(TorchDispatchMode):
    """Labels of a forward pass.

    Attributes:
        labels: the sets of coupled channels.
        outputs: layer → label of each output channel; also norms and depthwise convolutions.
        inputs: layer → label of each input channel that it reads.
    """

    def __init__(self, model: nn.Module, inner: frozenset[str] = frozenset()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.labels = ChannelLabels()
        self.outputs: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        self.factored: dict[str, set[int]] = {}  # site of a reshape that splits channels → labels
        self._inner = inner
        self._of: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._hidden = 0  # depth of layers whose operations are not looked at
        self._path: list[str] = []
        self._sites: dict[str, int] = {}
        self._model = model
        self._owners = {
            id(parameter): name
            for name, module in model.named_modules()
            if _is_layer(module)
            for parameter in module.parameters(recurse=False)
        }
        self._misused: dict[str, str] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: nothing is compiled, and with True torch would import its compiler."""
        return False

    @torch.no_grad()
    def run(self, example: Tensor) -> None:
        """Run the network on one input `[1, …]`."""
        source = self.labels.fixed("they are added to the network's inputs")
        with ExitStack() as hooks:
            for name, module in self._model.named_modules():
                before = module.register_forward_pre_hook(self._entering(name), with_kwargs=True)
                after = module.register_forward_hook(self._leaving(name))
                hooks.callback(before.remove)
                hooks.callback(after.remove)
            self._of[example] = torch.tensor(source).expand(example.shape)
            with self:
                output = self._model(example)
        for tensor in tree_iter(output):
            self._fix(tensor, "they are the network's outputs")
        for layer, reason in self._misused.items():
            for labels in (self.outputs.get(layer), self.inputs.get(layer)):
                self._fix_labels(labels, reason)

    # --- layers -----------------------------------------------------------------------------------

    def _entering(self, name: str) -> Any:  # noqa: ANN401 - torch's type of a hook
        def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._path.append(name)
            if self._hidden or _is_layer(module):
                self._hidden += 1
            if self._hidden != 1:
                return
            tensors = [value for value in tree_iter((args, named)) if isinstance(value, Tensor)]
            if isinstance(module, _MIXING):
                for tensor in tensors:
                    self._fix(tensor, _passing(module))
            elif tensors:
                self._enter_layer(name, module, tensors[0])

        return hook

    def _leaving(self, name: str) -> Any:  # noqa: ANN401
        def hook(module: nn.Module, _: object, output: Any) -> None:  # noqa: ANN401
            self._path.pop()
            self._hidden = max(0, self._hidden - 1)
            if self._hidden or not _is_layer(module):
                return
            if isinstance(module, _MIXING) or name not in self.outputs:
                self._set_fixed(output, _passing(module))
                return
            axis = _channel_axis(module, output)
            shape = [-1 if index == axis else 1 for index in range(output.ndim)]
            self._of[output] = self.outputs[name].view(shape).expand(output.shape)

        return hook

    def _enter_layer(self, name: str, module: nn.Module, inputs: Tensor) -> None:
        read = self._read(inputs, _channel_axis(module, inputs), name)
        if name not in self.outputs:
            self.outputs[name] = self.labels.new(num_outputs(module))
        made = self.outputs[name]
        if _is_channelwise(module):
            self._join(read, made, f"{type(module).__name__} {name}")
            return
        if getattr(module, "groups", 1) > 1:
            reason = "they pass through a grouped convolution that is not depthwise"
            self._fix_labels(read, reason)
            self._fix_labels(made, reason)
        if len(read) != num_inputs(module):  # a subclass with a forward of its own
            self._fix_labels(read, _passing(module))
            self._fix_labels(made, _passing(module))
            read = torch.zeros(num_inputs(module), dtype=torch.int64)
        self._join(self.inputs.setdefault(name, read), read, f"the second call of {name}")

    def _read(self, inputs: Tensor, axis: int, layer: str) -> Tensor:
        """Return the label of each input channel, whose elements must all have the same."""
        labels = self._of.get(inputs)
        if labels is None:
            return torch.zeros(inputs.shape[axis], dtype=torch.int64)
        matrix = self.labels.roots(stripped(labels, but=axis)).movedim(axis, 0).flatten(1)
        low, high = matrix.amin(1), matrix.amax(1)
        mixed = matrix[low != high]
        self._fix_labels(mixed, f"they are rearranged in front of {layer!r}")
        return high

    # --- operations -------------------------------------------------------------------------------

    def __torch_dispatch__(
        self,
        operation: Any,  # noqa: ANN401 - torch's own types of operations are private
        _types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        named = kwargs or {}
        output = operation(*args, **named)
        if self._hidden:
            return output
        tensors = [value for value in tree_iter((args, named)) if isinstance(value, Tensor)]
        for tensor in tensors:
            if (layer := self._owners.get(id(tensor))) is not None:
                self._misused.setdefault(layer, f"its weights are used outside of {layer!r}")
        if any(tensor in self._of for tensor in tensors):
            try:
                self._follow(operation, args, named, tensors, output)
            except Exception:  # noqa: BLE001 - whatever labels do not survive mixes channels
                reason = f"they pass through {self._site(operation)}"
                for tensor in tensors:
                    self._fix(tensor, reason)
                self._set_fixed(output, reason)
        return output

    def _site(self, operation: Any) -> str:  # noqa: ANN401
        where = self._path[-1] if self._path else ""
        return f"{_name_of(operation).strip('_')} in {where or 'the network'!r}"

    def _follow(
        self,
        operation: Any,  # noqa: ANN401
        args: tuple[Any, ...],
        named: dict[str, Any],
        tensors: list[Tensor],
        output: Any,  # noqa: ANN401
    ) -> None:
        full_name, what = _name_of(operation), self._site(operation)
        name = full_name.rstrip("_")
        is_part = isinstance(output, Tensor) and output.untyped_storage().nbytes() > output.nbytes
        if full_name.endswith("_") and is_part and (name == "copy" or output not in self._of):
            # the labels of the whole would have to change, too
            raise NotImplementedError(name)
        if name in _RESHAPING:
            labels = self._of[tensors[0]]
            self._of[output] = self._reshaped(labels, output.shape, what)
        elif name in _MOVING:
            self._move(name, operation, args, named, what, output)
        elif name == "glu":
            first, second = self._of[args[0]].chunk(2, *(args[1:2] or (-1,)))
            self._join(first, second, what, in_layer=True)
            self._of[output] = first
        elif name in _ELEMENTWISE or torch.Tag.pointwise in operation.tags:
            self._combine(tensors, output, what)
        elif name in _ALONG_DIMENSIONS:
            arguments = dict(zip((a.name for a in operation._schema.arguments), args, strict=False))  # noqa: SLF001
            dims = {**arguments, **named}.get("dim")
            self._reduce(tensors[0], dims, output, what)
        elif any(part in name for part in _SPATIAL):
            self._reduce_space(tensors[0], name, output, what)
        else:
            raise NotImplementedError(name)

    def _move(
        self,
        name: str,
        operation: Any,  # noqa: ANN401
        args: tuple[Any, ...],
        named: dict[str, Any],
        what: str,
        output: Any,  # noqa: ANN401
    ) -> None:
        arguments = {
            argument.name: argument.default_value
            for argument in operation._schema.arguments  # noqa: SLF001
            if argument.has_default_value()
        }
        names = [argument.name for argument in operation._schema.arguments]  # noqa: SLF001
        arguments |= dict(zip(names, args, strict=False)) | named
        if isinstance(args[0], Tensor):
            self._couple_parts(name, self._of.get(args[0]), arguments, what)
        if name == "constant_pad_nd":
            args, named = args[:2], {}  # whatever the value, no channel computes it
        # float64, since some of these exist for floating-point numbers only
        moved = operation(*tree_map(self._as_floats, args), **tree_map(self._as_floats, named))
        results = zip(tree_iter(output), tree_iter(moved), strict=True)
        for tensor, labels in results:
            self._of[tensor] = labels.long()

    def _as_floats(self, value: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, Tensor):
            return value
        labels = self._of.get(value)
        if labels is not None:
            return labels.double()
        if value.is_floating_point():  # a constant that is concatenated
            return torch.zeros((), dtype=torch.float64).expand(value.shape)
        return value.cpu()  # indices

    def _couple_parts(
        self, name: str, labels: Tensor | None, arguments: Mapping[str, Any], what: str
    ) -> None:
        """Join channels at the same position of equal parts: then each part loses the same."""
        if labels is None or name not in _PARTS:
            return
        dim = int(arguments.get("dim", _SHUFFLED_DIMENSION.get(name, 0))) % labels.ndim
        size = labels.shape[dim]
        start, length, stride = _PARTS[name](arguments, size)
        if length == size or not varies(labels, dim):
            return
        if length > 0 and size % length == 0 and start % length == 0:
            # parts are adjacent (stride 1) or interleaved
            shape = (size // length, length) if stride == 1 else (length, size // length)
            parts = labels.unflatten(dim, shape)
            self._join_along(parts, dim if stride == 1 else dim + 1, what)
        else:
            self._fix_labels(labels, f"they are split into unequal parts by {what}")

    def _reshaped(self, labels: Tensor, shape: torch.Size, what: str) -> Tensor:
        """Return reshaped labels; where channels are split into factors, all but one are fixed."""
        result = labels.reshape(shape)
        before = [dim for dim in range(labels.ndim) if varies(labels, dim)]
        after = [dim for dim in range(result.ndim) if varies(result, dim)]
        if len(after) > max(1, len(before)):
            self._sites[what] = self._sites.get(what, 0) + 1
            site = f"{what} {self._sites[what]}"
            self.factored[site] = set(torch.unique(labels).tolist())
            # usually the outer factors are constants of `forward` (groups, branches)
            for dim in after[1:] if site in self._inner else after[:-1]:
                self._join_along(result, dim, what)
        return result

    def _combine(self, tensors: Sequence[Tensor], output: Any, what: str) -> None:  # noqa: ANN401
        """Join the labels that an operation by element combines."""
        first = output if isinstance(output, Tensor) else next(iter(tree_iter(output)))
        shape = first.shape
        known = [self._of[tensor].expand(shape) for tensor in tensors if tensor in self._of]
        for tensor in tensors:
            if tensor in self._of or tensor.ndim > len(shape):
                continue
            offset = len(shape) - tensor.ndim
            wide = [offset + dim for dim, size in enumerate(tensor.shape) if size > 1]
            for labels in known:
                if any(varies(labels, dim) for dim in wide):
                    self._fix_labels(labels, f"they meet a parameter or constant in {what}")
        result = known[0]
        for labels in known[1:]:
            self._join(result, labels, what)
            result = torch.maximum(*torch.broadcast_tensors(stripped(result), stripped(labels)))
            result = result.expand(shape)
        for tensor in tree_iter(output):
            if isinstance(tensor, Tensor):
                self._of[tensor] = result.expand(tensor.shape)

    def _reduce(self, tensor: Tensor, dims: Any, output: Any, what: str) -> None:  # noqa: ANN401
        labels = self._of[tensor]
        if dims is None or dims == []:
            dims = range(labels.ndim)
        dims = [dims] if isinstance(dims, int) else list(dims)
        for dim in dims:
            if varies(labels, dim):
                self._join_along(labels, dim, what)
            labels = labels.narrow(dim, 0, 1) if labels.ndim else labels
        for result in tree_iter(output):
            same = result.shape == tensor.shape
            self._of[result] = labels.expand(tensor.shape) if same else labels.reshape(result.shape)

    def _reduce_space(self, tensor: Tensor, name: str, output: Any, what: str) -> None:  # noqa: ANN401
        labels = self._of[tensor]
        rank = next((n for n in (1, 2, 3) if f"{n}d" in name), tensor.ndim - 2)
        for dim in range(-rank, 0):
            if varies(labels, dim):
                self._join_along(labels, dim, what)
            labels = labels.narrow(dim, 0, 1)
        for result in tree_iter(output):
            self._of[result] = labels.expand(result.shape)

    # --- sets of labels ---------------------------------------------------------------------------

    def _join(self, labels: Tensor, others: Tensor, what: str, *, in_layer: bool = False) -> None:
        """Join labels at the same position."""
        first, second = torch.broadcast_tensors(stripped(labels), stripped(others))
        differ = first != second
        pairs = torch.stack([first[differ], second[differ]]).unique(dim=1)
        for label, other in pairs.T.tolist():
            self.labels.join(label, other, what, in_layer=in_layer)

    def _join_along(self, labels: Tensor, dim: int, what: str) -> None:
        self._join(labels, labels.narrow(dim, 0, 1).expand(labels.shape), what, in_layer=True)

    def _fix(self, tensor: Any, reason: str) -> None:  # noqa: ANN401
        if isinstance(tensor, Tensor):
            self._fix_labels(self._of.get(tensor), reason)

    def _fix_labels(self, labels: Tensor | None, reason: str) -> None:
        if labels is not None:
            for label in torch.unique(stripped(labels)).tolist():
                self.labels.fix(label, reason)

    def _set_fixed(self, output: Any, reason: str) -> None:  # noqa: ANN401
        label = torch.tensor(self.labels.fixed(reason))
        for tensor in tree_iter(output):
            if isinstance(tensor, Tensor):
                self._of[tensor] = label.expand(tensor.shape)


def _name_of(operation: Any) -> str:  # noqa: ANN401
    return str(operation._overloadpacket).rpartition(".")[2]  # noqa: SLF001 # no public name


def _is_layer(module: nn.Module) -> bool:
    """Return whether a module is seen as a whole, not by its operations."""
    prelu = isinstance(module, nn.PReLU) and module.num_parameters > 1
    return prelu or isinstance(module, (_ConvNd, nn.Linear, _BatchNorm, *_MIXING))


def _is_channelwise(module: nn.Module) -> bool:
    """Return whether each output channel is computed from the input channel of the same index."""
    if isinstance(module, _ConvNd):
        return 1 < module.groups == module.in_channels == module.out_channels
    return isinstance(module, (_BatchNorm, nn.PReLU))


def _channel_axis(module: nn.Module, tensor: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return tensor.ndim - 1
    if isinstance(module, _ConvNd):  # a batch may be missing
        return tensor.ndim - 1 - len(module.kernel_size)
    return min(1, tensor.ndim - 1)


def _passing(module: nn.Module) -> str:
    return f"they pass through a {type(module).__name__}"
