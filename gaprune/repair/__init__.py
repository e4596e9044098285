"""Repair after pruning: corrects statistics, biases and norms, and compensates channels."""

from gaprune.repair.repair_network import RepairResult, repair, repaired_copy
from gaprune.repair.repair_sites import RepairSites, find_repair_sites

__all__ = ["RepairResult", "RepairSites", "find_repair_sites", "repair", "repaired_copy"]
