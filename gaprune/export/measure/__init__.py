"""What a file costs and does, measured on the file: bytes, work, latency, agreement."""

from gaprune.evaluation.runtimes import RUNTIMES
from gaprune.export.measure.measure_file import FileMeasurement, measure

__all__ = ["RUNTIMES", "FileMeasurement", "measure"]
