"""What a source is asked for, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from gaprune.models.input_spec import InputSpec


@dataclass(frozen=True)
class Wanted:
    """A network as the user names it.

    Attributes:
        name: what stands after the scheme, such as `resnet18` in `timm:resnet18`.
        weights: a checkpoint of the user's own, or None for the pretrained weights.
        output: which of its outputs is compared (see `choose_output`); None: the usual one.
        allow_download: whether what is not on this machine may be fetched.
    """

    name: str
    weights: Path | None = None
    output: str | int | None = None
    allow_download: bool = False


@dataclass(frozen=True, eq=False)
class Loaded:
    """A network with its weights, as a source gives it.

    Attributes:
        model: takes one tensor and returns one; its parameters have the names of its checkpoint.
        inputs: one input as the network was trained on it, or None where that is not written down.
        origin: where the network and its weights came from, in words.
    """

    model: nn.Module
    inputs: InputSpec | None
    origin: str
