"""Networks in memory that this process pruned or exported, by the folder that it wrote."""

from __future__ import annotations

from pathlib import Path
from weakref import WeakValueDictionary

from torch import nn

# Weak: a folder must not keep a network in memory.
_networks: WeakValueDictionary[Path, nn.Module] = WeakValueDictionary()


def remember_network(folder: str | Path, model: nn.Module) -> None:
    """Remember the dense network of a run or an export for as long as it is in memory."""
    _networks[Path(folder).expanduser().resolve()] = model


def live_network(folder: str | Path) -> nn.Module | None:
    """Return the dense network of a run or an export, or None if it is not in memory."""
    return _networks.get(Path(folder).expanduser().resolve())
