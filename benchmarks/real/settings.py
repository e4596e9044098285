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
        "probes": ["inversion", "procedural"],
        "inversions": 512,
        "probe_count": 512,
        "guard_count": 256,
        "population": 2,
        "offspring": 1,
        "generations": 2,
        "allocation": 0,  # the continuation comes first, and moves weights between layers
        "steps": 75,
        "rate": 2.5,
        "batch": 64,
    },
    "efficientnet-lite0": {
        "probes": ["inversion", "procedural"],
        "inversions": 96,
        "probe_count": 96,
        "guard_count": 64,
        "population": 2,
        "offspring": 1,
        "generations": 1,
        "allocation": 0,
        "continuation": 100,
        "features": 4.0,
        "steps": 20,
        "rate": 5.0,
        "batch": 8,  # 16 take 3.9 GB
    },
    "crepe-tiny": {  # tones are near its domain
        "probes": ["procedural"],
        "probe_count": 512,
        "guard_count": 512,
        "population": 2,
        "offspring": 1,
        "generations": 2,
        "continuation": 300,
        "drift": 2.0,
        "steps": 50,
        "rate": 2.5,
        "batch": 64,
    },
    "crepe-full": {  # 22 M weights, 1.4 G multiply-adds: a gradient step takes seconds
        "probes": ["procedural"],
        "starts": ["wanda"],
        "probe_count": 128,
        "guard_count": 128,
        "population": 2,
        "offspring": 1,
        "generations": 1,
        "allocation": 0,
        "steps": 60,
        "rate": 2.5,
        "batch": 16,
    },
    "minilm": {  # its outputs are embeddings; LayerNorm keeps no statistics to invert
        "probes": ["topics"],
        "starts": ["lamp-wanda-rows"],
        "objective": "relative-error",
        "probe_count": 256,
        "guard_count": 256,
        "population": 2,
        "offspring": 1,
        "generations": 1,
        "allocation": 0,
        "steps": 20,
        "rate": 4.0,  # more are nearer in cosine and worse in rank correlation
        "batch": 32,
    },
}
OWN: dict[str, dict[str, dict[str, Any]]] = {  # where a method is best searched in another way
    "resnet20": {
        "repair": {"population": 3, "offspring": 2, "allocation": 3, "rate": 1.2},
    },
    "efficientnet-lite0": {
        "repair": {"continuation": 0, "generations": 2, "steps": 40},
    },
}
