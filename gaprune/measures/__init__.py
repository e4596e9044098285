"""What a file costs and does, measured on the file: bytes, work, latency, agreement."""

from gaprune.measures.measuring import Measured, measure
from gaprune.measures.runtimes import RUNTIMES

__all__ = ["RUNTIMES", "Measured", "measure"]
