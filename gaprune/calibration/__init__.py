"""Inputs to show to the teacher and the candidates, and the provenance that says which."""

from gaprune.calibration.files import read_calibration
from gaprune.calibration.generators.draws import Generator_, to_network
from gaprune.calibration.generators.noise import NOISE, noise
from gaprune.calibration.generators.procedural import GENERATORS, procedural
from gaprune.calibration.provenance import DATA_LEVELS, highest, make_provenance, sha256_of
from gaprune.calibration.samples import Samples

__all__ = [
    "DATA_LEVELS",
    "GENERATORS",
    "NOISE",
    "Generator_",
    "Samples",
    "highest",
    "make_provenance",
    "noise",
    "procedural",
    "read_calibration",
    "sha256_of",
    "to_network",
]
