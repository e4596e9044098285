"""Sparsities and search settings of every real network."""

from __future__ import annotations

from typing import Any

UNLABELLED = "unlabelled"  # stands for the file of the inputs in `PROXIES`
SPARSITIES: dict[str, tuple[float, ...]] = {
    "resnet20": (0.7, 0.9),
    "efficientnet-lite0": (0.3, 0.5),
    "crepe-tiny": (0.9,),
    "crepe-full": (0.9,),
    "minilm": (0.5, 0.7),
    "minilm-half": (0.7,),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "resnet20": {
        "calibration": ["inversion", "procedural"],
        "inversions": 512,
        "calibration_count": 512,
        "validation_count": 256,
        "population": 2,
        "offspring": 1,
        "generations": 2,
        "density_search": 0,  # the warm-up comes first and moves weights between layers
        "steps": 75,
        "learning_rate": 2.5,
        "batch": 64,
    },
    "efficientnet-lite0": {
        "calibration": ["inversion", "procedural"],
        "inversions": 96,
        "calibration_count": 96,
        "validation_count": 64,
        "population": 2,
        "offspring": 1,
        "generations": 1,
        "density_search": 0,
        "warmup": 100,
        "feature_loss": 4.0,
        "steps": 20,
        "learning_rate": 5.0,
        "batch": 8,  # a batch of 16 takes 3.9 GB
    },
    "crepe-tiny": {  # generated tones are close to its domain
        "calibration": ["procedural"],
        "calibration_count": 512,
        "validation_count": 512,
        "population": 2,
        "offspring": 1,
        "generations": 2,
        "warmup": 300,
        "statistics_loss": 2.0,
        "steps": 50,
        "learning_rate": 2.5,
        "batch": 64,
    },
    "crepe-full": {  # 22 M weights, 1.4 G multiply-adds: a gradient step takes seconds
        "calibration": ["procedural"],
        "initial_criteria": ["wanda"],
        "calibration_count": 128,
        "validation_count": 128,
        "population": 2,
        "offspring": 1,
        "generations": 1,
        "density_search": 0,
        "steps": 60,
        "learning_rate": 2.5,
        "batch": 16,
    },
    "minilm": {  # outputs are embeddings; the search ends with the best of these masks
        "calibration": ["sentences", "topics"],
        "initial_criteria": ["lamp-wanda-rows", "swaps"],
        "objective": "relative-error",
        "calibration_count": 1536,
        "validation_count": 256,
        "batch": 32,
    },
}
SETTINGS["minilm-half"] = {
    **SETTINGS["minilm"],
    "calibration": [UNLABELLED],
    "calibration_count": 1024,  # of 1,242 sentences
    "validation_count": 128,
}
OVERRIDES: dict[str, dict[str, dict[str, Any]]] = {  # network → method → better settings
    "resnet20": {
        "repair": {
            "initial_criteria": ["correlation"],
            "feature_loss": 2.0,
            "steps": 150,
            "learning_rate": 0.6,
        },
    },
    "efficientnet-lite0": {
        "repair": {"warmup": 0, "generations": 2, "steps": 40},
    },
}
