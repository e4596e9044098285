"""Inputs to show to the teacher and the candidates, and the receipt that says which."""

from gaprune.calibration.files import read_probes
from gaprune.calibration.generators.draws import Generator_, to_network
from gaprune.calibration.generators.noise import NOISE, noise
from gaprune.calibration.generators.procedural import GENERATORS, procedural
from gaprune.calibration.receipt import RUNGS, highest, make_receipt, sha256_of
from gaprune.calibration.samples import Samples

__all__ = [
    "GENERATORS",
    "NOISE",
    "RUNGS",
    "Generator_",
    "Samples",
    "highest",
    "make_receipt",
    "noise",
    "procedural",
    "read_probes",
    "sha256_of",
    "to_network",
]
