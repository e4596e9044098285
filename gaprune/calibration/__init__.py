"""Inputs to show to the teacher and the candidates, and the provenance that says which."""

from gaprune.calibration.files import read_samples
from gaprune.calibration.generators.draws import InputGenerator, to_network
from gaprune.calibration.generators.noise import NOISE, noise
from gaprune.calibration.generators.procedural import GENERATORS, procedural
from gaprune.calibration.provenance import (
    DATA_LEVELS,
    highest_level,
    make_provenance,
    samples_sha256,
)
from gaprune.calibration.samples import Samples

__all__ = [
    "DATA_LEVELS",
    "GENERATORS",
    "NOISE",
    "InputGenerator",
    "Samples",
    "highest_level",
    "make_provenance",
    "noise",
    "procedural",
    "read_samples",
    "samples_sha256",
    "to_network",
]
