"""Weights that live or die together: units of a search, and the masks that they stand for."""

from gaprune.patterns.blocks import Blocks
from gaprune.patterns.channels import Channels, Wiring
from gaprune.patterns.units import Units

__all__ = ["Blocks", "Channels", "Units", "Wiring"]
