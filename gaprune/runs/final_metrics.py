"""Final figures of what a run found: after repair, and on labelled inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gaprune.calibration.samples import Samples
from gaprune.callbacks import Observer
from gaprune.config import Settings
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.held_out import HeldOut
from gaprune.evaluation.objectives import accuracy, finite
from gaprune.evolution.genome import Individual
from gaprune.models.forward import batched_forward
from gaprune.models.target import Target
from gaprune.profiling import profiled
from gaprune.repair import repair, repaired_copy
from gaprune.report.data import confusion_of
from gaprune.runs.result import RepairedScore
from gaprune.workers.serial import torch_threads


@dataclass(frozen=True, eq=False)
class FinalMetrics:
    """What is measured once the best mask is known; nothing of it goes back into the search.

    Attributes:
        target: the dense network.
        settings: of the run.
        test: labelled inputs for the accuracy, or None.
        observer: told of progress.
        evaluator: the calibration inputs with the dense network's answers.
        best: what the run found.
    """

    target: Target
    settings: Settings
    test: Samples | None
    observer: Observer
    evaluator: Evaluator
    best: Individual

    def repaired(self, strict: float) -> RepairedScore:
        """Match the pruned network's activations to the dense network's on the calibration inputs.

        `strict` is the agreement on the validation inputs as it is.
        """
        evaluator, validation = self.evaluator, self.evaluator.validation
        self.observer.phase("repair", "matching its activations to the dense network's")
        with profiled("repair"), torch_threads(self.settings.threads_per_worker):
            masks = evaluator.masks(self.best.mask)
            done = repair(self.target, masks, evaluator.statistics_inputs)
            model = repaired_copy(self.target, masks, done)
            outputs = batched_forward(model, validation.inputs)
            found = evaluator.objective.agreement(outputs, validation.teacher, validation.labels)
            agreement = finite(float(found))
            held_out = None if self.test is None else HeldOut(self.target, self.test)
            tested = None if held_out is None else held_out.measure(model).accuracy
        for reason in done.skipped:
            self.observer.warning(f"not repaired: {reason}")
        if agreement < strict:
            self.observer.warning(
                f"repair lowers the agreement on the validation inputs from {strict:.1%} to "
                f"{agreement:.1%}: use the strict network, unless inputs of your own say otherwise"
            )
        return RepairedScore(done, agreement, tested, self.settings.repair_in_loop)

    def tested(self, seeds: list[Individual]) -> tuple[dict[str, float], dict[str, Any] | None]:
        """Measure accuracy on labelled test data, after everything is decided.

        Returns:
            "dense", "pruned" or a seed's origin → accuracy, 0 to 1; and what `confusion_of` says.
            Without test data nothing and None.
        """
        test, evaluator = self.test, self.evaluator
        if test is None or test.labels is None:
            return {}, None
        self.observer.phase("test", f"measuring accuracy on {len(test.inputs)} labelled inputs")
        inputs, labels = test.inputs.to(self.target.device), test.labels.to(self.target.device)
        with profiled("test"), torch_threads(self.settings.threads_per_worker):
            dense = batched_forward(evaluator.network.model, inputs)
            pruned = evaluator.outputs(self.best.mask, inputs)
            rows = {"dense": float(accuracy(dense, dense, labels))}
            rows["pruned"] = float(accuracy(pruned, dense, labels))
            confusion = confusion_of(labels, dense=dense, pruned=pruned)
            for seed in seeds:
                outputs = evaluator.validation_outputs(seed.mask, inputs)
                rows[seed.origin] = float(accuracy(outputs, dense, labels))
        return rows, confusion
