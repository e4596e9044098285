"""Inputs to show to the teacher and the candidates, and the receipt that says which."""

from gaprune.probes.draws import Generator_, to_network
from gaprune.probes.files import read_probes
from gaprune.probes.noise import NOISE, noise
from gaprune.probes.procedural import GENERATORS, procedural
from gaprune.probes.receipt import RUNGS, highest, make_receipt, sha256_of
from gaprune.probes.samples import Samples

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
