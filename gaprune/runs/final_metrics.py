"""Final metrics of the best mask: after repair, and on labelled inputs."""

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
    """Measures the best mask of a run; none of it returns to the search.

    Attributes:
        target: the dense network.
        settings: of the run.
        test: labelled inputs for the accuracy, or None.
        observer: told of progress.
        evaluator: the calibration inputs with the dense network's outputs.
        best: the best mask.
    """

    target: Target
    settings: Settings
    test: Samples | None
    observer: Observer
    evaluator: Evaluator
    best: Individual

    def repaired(self, strict: float) -> RepairedScore:
        """Repair the pruned network on the calibration inputs, and score it.

        Args:
            strict: its agreement on the validation inputs without repair.
        """
        evaluator, validation = self.evaluator, self.evaluator.validation
        self.observer.phase("repair", "matching activations to those of the dense network")
        with profiled("repair"), torch_threads(self.settings.threads_per_worker):
            masks = evaluator.masks(self.best.mask)
            result = repair(self.target, masks, evaluator.statistics_inputs)
            model = repaired_copy(self.target, masks, result)
            outputs = batched_forward(model, validation.inputs)
            value = evaluator.objective.agreement(outputs, validation.teacher, validation.labels)
            agreement = finite(float(value))
            tested = None
            if self.test is not None:
                tested = HeldOut(self.target, self.test).measure(model).accuracy
        for reason in result.skipped:
            self.observer.warning(f"not repaired: {reason}")
        if agreement < strict:
            self.observer.warning(
                f"repair lowers the agreement on the validation inputs from {strict:.1%} to "
                f"{agreement:.1%}: use the strict network, unless your own inputs say otherwise"
            )
        return RepairedScore(result, agreement, tested, self.settings.repair_in_loop)

    def accuracies(self, seeds: list[Individual]) -> tuple[dict[str, float], dict[str, Any] | None]:
        """Measure the accuracy on labelled test data, after all choices are made.

        Returns:
            `dense`, `pruned` or the origin of a seed → accuracy in [0, 1], and the confusion matrix
            (`confusion_of`); nothing and None without test data.
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
