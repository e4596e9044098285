"""Remove channels from a network: a smaller copy, and the network of full size that equals it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gaprune.errors import InputError
from gaprune.models.channel_groups import ChannelGraph
from gaprune.models.channel_slicing import sliced_copy, zeroed_copy

ROUNDING = 1000  # permitted difference, in units of the dtype's precision at the output's size


def remove_channels(
    model: nn.Module, example: Tensor, channels: Mapping[str, Sequence[int]]
) -> nn.Module:
    """Return a smaller copy, in evaluation mode, without these channels and their dependents.

    It computes the same function as `masked_equivalent`; this is checked on the example `[1, ...]`.

    Raises:
        InputError: `channels` (layer → output channels) are unknown or cannot be removed, a layer
            has no other, or the network computes something else without them.
    """
    removal = ChannelGraph.trace(model, example).removal(channels)
    compact = sliced_copy(model, removal)
    # tracing can be wrong, for example about slices by position: compare before returning
    names = f"channels: those of {', '.join(sorted(channels))}"
    check_same(compact, zeroed_copy(model, removal), example, names)
    return compact


def masked_equivalent(
    model: nn.Module, example: Tensor, channels: Mapping[str, Sequence[int]]
) -> nn.Module:
    """Return a copy of the same size in which these channels are zero and are read as zero.

    Zeroed are weights and biases that compute them, γ and β of their norms, and the weights that
    read them (an activation need not map 0 to 0). For arguments see `remove_channels`.
    """
    return zeroed_copy(model, ChannelGraph.trace(model, example).removal(channels))


@torch.no_grad()
def check_same(compact: nn.Module, expected: nn.Module, example: Tensor, removed: str) -> None:
    """Raise unless both networks agree on the example: tracing misses some of what forward does."""
    outputs = expected.eval()(example)
    try:
        error_size = float((compact.eval()(example) - outputs).abs().max())
    except RuntimeError as error:
        raise InputError(
            f"{removed} cannot be removed, the network doesn't run without them ({error}); leave "
            "them out"
        ) from error
    tolerance = ROUNDING * torch.finfo(outputs.dtype).eps * max(1.0, float(outputs.abs().max()))
    if not error_size <= tolerance:  # also for NaN
        raise InputError(
            f"{removed} cannot be removed, the network computes something else "
            f"without them (its output is off by {error_size:.3g}); leave them out"
        )
