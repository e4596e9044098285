"""Measure a file of weights: bytes, multiply-adds, latency, agreement."""

from gaprune.evaluation.runtimes import RUNTIMES
from gaprune.exports.measure.measure_file import FileMeasurement, measure

__all__ = ["RUNTIMES", "FileMeasurement", "measure"]
