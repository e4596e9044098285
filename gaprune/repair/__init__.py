"""Repair after pruning: means and spreads put back on calibration inputs, every weight as it was."""

from gaprune.repair.anchors import Anchors, aligned, anchor, repaired_outputs
from gaprune.repair.features import Feature, compared, noted
from gaprune.repair.fold import Repaired, repair, repair_anchored, repaired_copy
from gaprune.repair.moments import Moments, statistics_loss
from gaprune.repair.points import BIAS, NORM, PARTS, STATISTICS
from gaprune.repair.sites import Sites, default_parts, survey

__all__ = [
    "BIAS",
    "NORM",
    "PARTS",
    "STATISTICS",
    "Anchors",
    "Feature",
    "Moments",
    "Repaired",
    "Sites",
    "aligned",
    "anchor",
    "compared",
    "default_parts",
    "noted",
    "repair",
    "repair_anchored",
    "repaired_copy",
    "repaired_outputs",
    "statistics_loss",
    "survey",
]
