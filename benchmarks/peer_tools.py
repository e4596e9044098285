"""Tools that prune channels without data, each brought to the same multiply-adds."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from benchmarks.channel_methods import Case, ChannelPruned, Method, compared, searched
from gaprune.errors import GapruneError, first_line
from gaprune.models.macs import macs_per_input
from gaprune.models.target import Target, trainable_copy

RATIOS = 64  # ratios between 0 and 1 that are tried of torch-pruning, by bisection
TRIES = 4  # memory limits that are tried of model-compression-toolkit, whose scores take minutes
MCT_IMAGES, MCT_STEPS = 64, 100  # that it generates; steps of its optimizer on them
BYTES = 4  # of a weight, as it counts memory


def _package(module: str, name: str) -> Any:  # noqa: ANN401
    """Return an installed package.

    Raises:
        GapruneError: it is not installed, or does not load beside the packages that are.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return import_module(module)
    except Exception as error:  # loading runs its code, which may raise anything
        raise GapruneError(
            f"{name}: does not load ({type(error).__name__}: {first_line(error)}); "
            f"pip install {name}"
        ) from error


def _torch_pruning(
    importance: str, target: Target, case: Case, _seed: int, *, everywhere: bool = False
) -> ChannelPruned:
    """Remove channels by torch-pruning, which finds their groups itself.

    Its ratio of channels is bisected down to the multiply-adds. `everywhere` ranks the channels of
    all layers together.
    """
    tp = _package("torch_pruning", "torch-pruning")
    score = getattr(tp.importance, importance)()

    def attempt(ratio: float) -> nn.Module:
        model = trainable_copy(target.model)
        pruner = tp.pruner.BasePruner(
            model,
            target.example(),
            importance=score,
            global_pruning=everywhere,
            pruning_ratio=ratio,
            ignored_layers=[model.get_submodule(_last_layer(target))],
            round_to=case.width_multiple,
        )
        pruner.step()
        return model.eval().requires_grad_(False)

    return ChannelPruned(_largest_within(target, case, attempt, RATIOS), "none")


def _largest_within(
    target: Target, case: Case, attempt: Callable[[float], nn.Module], steps: int
) -> nn.Module:
    """Bisect a fraction to remove, a multiple of 1 ÷ `steps`, down to the budget.

    Raises:
        GapruneError: the tool fails, its network does not run, or none is small enough.
    """
    dense, best = macs_per_input(target.model, target.example()), None
    low, high = 1, steps
    while low < high:
        middle = (low + high) // 2
        try:
            model = attempt(middle / steps)
            macs = macs_per_input(model, target.example())
        except Exception as error:  # the tool's code may raise anything
            text = f"{type(error).__name__}: {first_line(error)}"
            raise GapruneError(f"fails or returns a network that does not run ({text})") from error
        if macs <= (1 - case.sparsity) * dense:
            high, best = middle, model
        else:
            low = middle + 1
    if best is None:
        raise GapruneError(f"no network with {1 - case.sparsity:g} of the multiply-adds")
    return best


def _last_layer(target: Target) -> str:
    """Return the layer that computes the outputs: the last one to run."""
    called: list[str] = []
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, module in target.model.named_modules():
            if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):  # noqa: SLF001

                def record(*_: object, name: str = name) -> None:
                    called.append(name)

                hooks.enter_context(module.register_forward_hook(record))
        target.model(target.example())
    return called[-1]


def _torch_prune(target: Target, case: Case, _seed: int) -> ChannelPruned:
    """Set the output channels of smallest L1 norm to 0 in every layer but the last.

    The fraction of the channels is that of the multiply-adds, which then multiply by 0.
    """
    model, last = trainable_copy(target.model), _last_layer(target)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) and name != last:
            prune.ln_structured(module, "weight", amount=case.sparsity, n=1, dim=0)
            prune.remove(module, "weight")
    return ChannelPruned(model.eval().requires_grad_(False), "none")


def _model_compression_toolkit(target: Target, case: Case, _seed: int) -> ChannelPruned:
    """Generate images from BatchNorm statistics and prune on them, both by the toolkit."""
    mct: ModuleType = _package("model_compression_toolkit", "model-compression-toolkit")
    core, dense = mct.core, sum(value.numel() for value in target.model.parameters())

    def attempt(fraction: float) -> nn.Module:
        with contextlib.redirect_stdout(io.StringIO()):
            model, _ = mct.pruning.pytorch_pruning_experimental(
                model=trainable_copy(target.model),
                target_resource_utilization=core.ResourceUtilization(
                    weights_memory=dense * BYTES * (1 - fraction)
                ),
                representative_data_gen=batches,
                pruning_config=mct.pruning.PruningConfig(num_score_approximations=1),
            )
        return model.eval().requires_grad_(False)  # type: ignore[no-any-return]

    try:
        images = _mct_images(mct, target)
    except Exception as error:  # the tool's code may raise anything
        text = f"{type(error).__name__}: {first_line(error)}"
        raise GapruneError(f"generates no images for this network ({text})") from error

    def batches() -> Iterator[list[Tensor]]:
        yield [images]

    return ChannelPruned(_largest_within(target, case, attempt, 2**TRIES), "inversion")


def _mct_images(mct: Any, target: Target) -> Tensor:  # noqa: ANN401
    config = mct.data_generation.get_pytorch_data_generation_config(
        n_iter=MCT_STEPS, data_gen_batch_size=MCT_IMAGES
    )
    with contextlib.redirect_stdout(io.StringIO()), torch.enable_grad():
        made = mct.data_generation.pytorch_data_generation_experimental(
            model=trainable_copy(target.model),
            n_images=MCT_IMAGES,
            output_image_size=tuple(target.inputs.shape[-2:]),
            data_generation_config=config,
        )
    images = torch.cat(list(made)).detach()
    if prod(images.shape[1:]) != prod(target.inputs.shape):
        raise GapruneError(f"images of shape {tuple(images.shape[1:])}")
    return images.view(-1, *target.inputs.shape)


def _gaprune(target: Target, case: Case, seed: int) -> ChannelPruned:
    return searched(target, case, seed, method=case.criterion, compensate=True)


TOOLS: dict[str, tuple[str, Method]] = {
    "gaprune": ("gaprune", _gaprune),
    "neuron-merging": ("gaprune", partial(compared, "neuron-merging")),
    "folding": ("gaprune", partial(compared, "folding")),
    "structured-l1-repaired": ("gaprune", partial(compared, "structured-l1-repaired")),
    "torch-pruning: magnitude": (
        "torch-pruning",
        partial(_torch_pruning, "GroupMagnitudeImportance"),
    ),
    "torch-pruning: BatchNorm scale": (
        "torch-pruning",
        partial(_torch_pruning, "BNScaleImportance", everywhere=True),
    ),
    "torch-pruning: LAMP": (
        "torch-pruning",
        partial(_torch_pruning, "LAMPImportance", everywhere=True),
    ),
    "torch.nn.utils.prune": ("torch", _torch_prune),
    "model-compression-toolkit": ("model-compression-toolkit", _model_compression_toolkit),
}
"""Name → distribution that does the work, and the function."""
