"""Try to remove channels: the smaller network must compute the same as if no layer read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from gaprune.errors import first_line
from gaprune.models.channel_slicing import ChannelRemoval, sliced_copy, unread_copy
from gaprune.models.target import private_copy

SHARES = (0.5, 0.2)  # of the channels of every group, removed in one trial each
NOISE = 0.1  # relative change of all weights: fresh networks have equal or zero weights
# Permitted difference, in units of the dtype's precision at the output's size.
ROUNDING = {torch.float64: 1e7, torch.float32: 1e3}

Channels = TypeVar("Channels")


class ChannelTrial:
    """A network with noise on its weights, in float64 if it runs in float64, and one input."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self._model = _perturbed(model)
        self._example = example
        if example.is_floating_point():
            try:
                self._model.double()(example.double())
                self._example = example.double()
            except Exception:  # noqa: BLE001 - the network's own code; it may need its dtype
                self._model = _perturbed(model)

    def failures(
        self,
        groups: Sequence[Sequence[Channels]],
        removal_of: Callable[[Sequence[Channels]], ChannelRemoval],
    ) -> dict[int, str]:
        """Return index → what goes wrong for each group whose channels cannot be removed.

        All groups are tried at once, and halves of them where that fails. A group is a sequence of
        at least two sets of channels; `removal_of` says what goes with some of them.
        """
        failed: dict[int, str] = {}
        for share in SHARES:
            generator = torch.Generator().manual_seed(0)
            chosen = [_some(group, share, generator) for group in groups]

            def search(indices: list[int], chosen: list[list[Channels]] = chosen) -> None:
                sets = [channels for index in indices for channels in chosen[index]]
                problem = self._problem(removal_of(sets)) if indices else None
                if problem is None:
                    return
                if len(indices) == 1:
                    failed[indices[0]] = problem
                    return
                middle = len(indices) // 2
                search(indices[:middle])
                search(indices[middle:])

            left = -1
            while left != len(failed):  # until the remaining groups can be removed together
                left = len(failed)
                search([index for index in range(len(groups)) if index not in failed])
        return failed

    @torch.no_grad()
    def _problem(self, removal: ChannelRemoval) -> str | None:
        try:
            outputs = sliced_copy(self._model, removal, share=True)(self._example)
        except Exception as error:  # noqa: BLE001 - the network's own code, with other sizes
            return f"the network doesn't run without some of them ({first_line(error)})"
        expected = unread_copy(self._model, removal.inputs, share=True)(self._example)
        if outputs.shape != expected.shape:
            return "the network's output has another shape without some of them"
        difference = float((outputs - expected).abs().max())
        size = float(expected.abs().max())
        tolerance = ROUNDING.get(expected.dtype, 8.0) * torch.finfo(expected.dtype).eps * size
        if difference <= tolerance:  # not so for NaN
            return None
        return (
            "the network computes something else without some of them "
            f"(its output of size {size:.3g} is off by {difference:.3g})"
        )


@torch.no_grad()
def _perturbed(model: nn.Module) -> nn.Module:
    """Return a copy with noise on all weights, and on the statistics of its norms."""
    copied, generator = private_copy(model, _device_of(model)), torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = dict(copied.named_parameters())
    state |= {
        k: v for k, v in copied.named_buffers() if k.endswith(("running_mean", "running_var"))
    }
    for tensor in state.values():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            scale = float(tensor.abs().double().mean()) if tensor.numel() else 0.0
            tensor.add_((NOISE * (scale or 1.0) * noise.clamp(-3, 3)).to(tensor))
    for name, tensor in copied.named_buffers():
        if name.endswith("running_var"):
            tensor.abs_().clamp_min_(1e-3)  # variances stay positive
    return copied


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _some(group: Sequence[Channels], share: float, generator: torch.Generator) -> list[Channels]:
    """Draw a share of the channels of a group, at least one and not all."""
    count = min(max(1, round(share * len(group))), len(group) - 1)
    order = torch.randperm(len(group), generator=generator)
    return [group[index] for index in order[:count].tolist()]
