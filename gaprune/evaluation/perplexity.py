"""How well a language model predicts a text."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from gaprune.calibration.inversion.self_text import all_logits

ROWS = 2  # texts per pass: the logits of a large vocabulary take 50 MB each


@torch.no_grad()
def perplexity(model: nn.Module, ids: Tensor) -> float:
    """Return exp of the mean cross-entropy in nats of texts `[N, L]`, int64, L at least 2.

    Every token but the first of each text is predicted from those before it.
    """
    total = 0.0
    for texts in ids.split(ROWS):
        logits = all_logits(model, texts)[:, :-1].float()
        targets = texts[:, 1:].flatten()
        total += float(functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum"))
    return math.exp(min(total / (ids.numel() - len(ids)), 700.0))  # exp(710) is no float
