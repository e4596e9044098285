"""What is known of masks that were tried on a evaluator, bit for bit what trying again would give."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from gaprune.evaluation.cache.lru import LRUCache
from gaprune.evaluation.cache.prefix_cache import Prefixes
from gaprune.masks.supermask import Layout
from gaprune.models.forward import forward_batch_size, functional_forward, split_batches

SCORES = 1 << 14  # of masks, at most
ANSWERS = 64 << 20  # bytes of outputs

Marks = tuple[bytes, ...]


def marks_of(mask: Tensor, layout: Layout) -> Marks:
    """Return for every layer a hash of a flat bool mask up to there; the last is of all of it."""
    total, marks, flat = hashlib.blake2b(digest_size=16), [], mask.cpu().numpy()
    for part in layout.slices:
        total.update(np.packbits(flat[part]).data)
        marks.append(total.digest())
    return tuple(marks)


class MaskCache:
    """Scores of masks, their answers to the first calibration inputs, and what first layers gave.

    A mask that won the race on few calibration inputs answers to the others alone when it is tried on all. No
    more is held than the constants of this room say.

    Attributes:
        scores: mask and number of calibration inputs → fitness.
        prefixes: see there.
    """

    def __init__(self) -> None:
        self.scores: LRUCache[tuple[bytes, int], float] = LRUCache(SCORES)
        self.prefixes = Prefixes()
        self._answers: LRUCache[bytes, Tensor] = LRUCache(ANSWERS)

    def answers(
        self,
        model: nn.Module,
        weights: Mapping[str, Tensor],
        kept: Mapping[str, Tensor],
        inputs: Tensor,
        marks: Marks,
    ) -> Tensor:
        """Return what a masked network answers as it is, `[N, …]`: the bits of `forward`.

        Args:
            model: the dense network.
            weights: its prunable weights.
            kept: those of the mask in their place.
            inputs: the first N of the calibration inputs that this is for.
            marks: of the mask.
        """
        begun, count = self._answers.get(marks[-1]), len(inputs)
        done = 0 if begun is None else min(len(begun), count)
        if begun is not None and len(begun) != count:
            done -= done % forward_batch_size(
                inputs
            )  # rounding may depend on what a chunk holds beside
        parts = [] if begun is None else [begun[:done]]
        if done < count:
            parts.append(self._passed(model, weights, kept, inputs, marks, done))
        outputs = torch.cat(parts)
        if len(outputs) == count and (begun is None or count > len(begun)):
            # a copy: objectives of the user's own may write into what they are given
            self._answers.put(marks[-1], outputs.clone(), outputs.nbytes)
        return outputs

    def _passed(
        self,
        model: nn.Module,
        weights: Mapping[str, Tensor],
        kept: Mapping[str, Tensor],
        inputs: Tensor,
        marks: Marks,
        done: int,
    ) -> Tensor:
        """Pass all but the first inputs."""
        left, depth = inputs[done:], self.prefixes.shared(marks)
        if depth and inputs.device.type == "cpu":  # on a GPU, small networks wait for its kernels
            batches, each = split_batches(left), forward_batch_size(left)
            stages = self.prefixes.stages(model, weights, kept, batches[0], len(inputs))
            if stages is not None:
                rows = {done + index * each: batch for index, batch in enumerate(batches)}
                return self.prefixes.answers(stages, kept, rows, marks, depth)
        return functional_forward(model, kept, left)
