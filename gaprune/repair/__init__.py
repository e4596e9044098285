"""Repair after pruning: corrects statistics, biases and norms; prunable weights keep their bits."""

from gaprune.repair.repair_network import RepairResult, repair, repaired_copy
from gaprune.repair.repair_rules import BIAS, NORM, PARTS, STATISTICS
from gaprune.repair.repair_sites import RepairSites, default_parts, find_repair_sites

__all__ = [
    "BIAS",
    "NORM",
    "PARTS",
    "STATISTICS",
    "RepairResult",
    "RepairSites",
    "default_parts",
    "find_repair_sites",
    "repair",
    "repaired_copy",
]
