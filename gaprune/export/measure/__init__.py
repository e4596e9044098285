"""What a file costs and does, measured on the file: bytes, work, latency, agreement."""

from gaprune.evaluation.runtimes import RUNTIMES
from gaprune.export.measure.measure_file import Measured, measure

__all__ = ["RUNTIMES", "Measured", "measure"]
