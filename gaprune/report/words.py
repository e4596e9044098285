"""Numbers and facts as a reader meets them: percentages, times, sizes, and where data came from."""

from __future__ import annotations

import math

from gaprune.formatting import MISSING, percent

DATA_LEVELS = {
    "none": "No input was shown to the network: the weights alone decided.",
    "noise": "No real input was shown to the network: random noise only.",
    "procedural": "No real input was shown to the network: patterns drawn by a program only.",
    "inversion": "No real input was shown to the network: inputs were recovered from the network "
    "itself.",
    "proxy": "The network was shown somebody else's data of the same kind, not that which it was "
    "trained on.",
    "unlabelled": "The network was shown inputs of its own domain, without labels.",
    "labelled": "The network was shown labelled inputs of its own domain.",
}
ENDINGS = {
    "generations": "after all its generations",
    "evaluations": "at its limit of evaluations",
    "seconds": "at its limit of time",
    "stagnation": "because nothing improved any more",
    "validation": "because it gained on its own calibration inputs and lost on the validation inputs",
    "interrupted": "when somebody stopped it; this is the best so far",
    "one-shot": "at once: one criterion ranked the weights and nothing was searched",
}


def short(value: float) -> str:
    """The same for an axis: 25000 → `25k`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def certainty(part: float | None) -> str:
    """A probability in whole percent that is never said to be all: 0.9999 → `>99 %`."""
    if part is None or not math.isfinite(part):
        return MISSING
    return ">99 %" if part > 0.995 else percent(part, 0)
