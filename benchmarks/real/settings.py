"""How every real network is pruned: at which sparsities, and with which settings of the search."""

from __future__ import annotations

from typing import Any

SPARSITIES: dict[str, tuple[float, ...]] = {
    "resnet20": (0.7, 0.9),
    "efficientnet-lite0": (0.3, 0.5),
    "crepe-tiny": (0.9,),
    "crepe-full": (0.9,),
    "minilm": (0.5, 0.7),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "resnet20": {
        "probes": ["procedural", "inversion"],
        "inversions": 512,
        "probe_count": 512,
        "guard_count": 512,
        "population": 4,
        "offspring": 3,
        "generations": 6,
        "steps": 40,
        "rate": 0.1,
        "batch": 128,
    },
    "efficientnet-lite0": {  # long steps on few inverted photographs do harm
        "probes": ["procedural", "inversion"],
        "inversions": 96,
        "probe_count": 128,
        "guard_count": 128,
        "population": 3,
        "offspring": 2,
        "generations": 3,
        "steps": 15,
        "rate": 0.05,
        "batch": 16,
    },
    "crepe-tiny": {
        "probes": ["procedural", "inversion"],
        "inversions": 256,
        "probe_count": 512,
        "guard_count": 512,
        "population": 4,
        "offspring": 3,
        "generations": 4,
        "steps": 30,
        "rate": 0.2,
        "batch": 64,
    },
    "crepe-full": {
        "probes": ["procedural", "inversion"],
        "inversions": 64,
        "probe_count": 128,
        "guard_count": 128,
        "population": 2,
        "offspring": 2,
        "generations": 2,
        "steps": 15,
        "rate": 0.2,
        "batch": 16,
    },
    "minilm": {  # LayerNorm keeps no statistics to invert
        "probes": ["procedural"],
        "probe_count": 256,
        "guard_count": 256,
        "population": 3,
        "offspring": 2,
        "generations": 3,
        "steps": 30,
        "rate": 0.1,
        "batch": 32,
    },
}
