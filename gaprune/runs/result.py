"""The result of a run: the masks, the pruned network, and the record of how it was made."""

from __future__ import annotations

import copy
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from typing import Any

from torch import Tensor, nn

from gaprune.io.run_files import RESULT_SCHEMA
from gaprune.masks.supermask import attach
from gaprune.models.forward_hooks import without_added_hooks
from gaprune.models.mac_cost import MacCounts, kept_macs
from gaprune.models.prunable import floating_total
from gaprune.models.target import Target
from gaprune.pattern_names import WEIGHTS
from gaprune.profiling import Profile, Profiler
from gaprune.records import BaselineScore, Generation, LayerCount, Provenance
from gaprune.repair import RepairResult, repaired_copy
from gaprune.runs.result_text import LayerTable, result_html, result_text


@cache
def versions_here() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide about masks."""
    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in ("gaprune", "torch", "numpy", "deap")}
    with suppress(metadata.PackageNotFoundError):  # a folder named `ray` can be imported, too
        versions["ray"] = metadata.version("ray")
    return versions


@dataclass(frozen=True, eq=False)
class RepairedScore:
    """A pruned network after repair, or after compensation and repair."""

    repair: RepairResult  # what changed; only compensation changes prunable weights
    validation: float  # agreement with the dense network on the validation inputs, 0 to 1
    accuracy: float | None  # on the labelled test set
    in_loop: bool = False  # whether masks, baselines and front were scored after repair

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        changed, skipped = list(self.repair.changed), list(self.repair.skipped)
        scores = {name: value for name, value in vars(self).items() if name != "repair"}
        return {**scores, "changed": changed, "skipped": skipped}


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """A pruned network and everything known about it.

    Attributes:
        target: the dense network, on the CPU.
        masks: parameter name → bool tensor of its shape, true where the weight stays.
        method: `evolved`, or the one-shot criterion.
        preset: the kind of search, or None for a one-shot criterion.
        origin: the operators or the criterion that made the mask.
        sparsity: the fraction of weights that was asked to be removed.
        calibration_agreement: agreement with the dense network on calibration inputs, 0 to 1.
        validation_agreement: agreement on the validation inputs.
        accuracy: on the labelled test set, or None.
        dense_accuracy: that of the dense network.
        perplexity: of a language model on a test text, `dense` and `pruned`; else None.
        baselines: one-shot method → its scores at the same sparsity; with `repair_in_loop` after
            repair.
        provenance: where calibration and validation inputs came from.
        history: one record per generation.
        stopped: why the search ended: `generations`, `evaluations`, `seconds`, `stagnation`,
            `validation` (it lost on the validation inputs), `interrupted`, or `one-shot`.
        evaluations: scored candidates of all searches; every gradient step counts as one.
        seconds: of the whole run.
        settings: every setting, as used.
        repaired: the network after repair, or None. The figures above are those of the strict
            network, whose kept values are all bit-identical.
        compensated: the network after compensation and repair, or None; its weights differ.
        front: with `pareto`, the non-dominated networks: sparsity and agreement on the validation
            inputs (after repair with `repair_in_loop`).
        front_masks: their masks, in the same order.
        trials: with `max_drop`, every sparsity that was searched, in order: its agreement on the
            validation inputs (with `repair` after repair), and whether it was within the limit.
        latency: with budget `latency`, the asked, predicted and measured latency; else None.
        versions: of gaprune, Python, torch, numpy, deap, and ray if it is installed.
        report_data: data that only the report needs (`gaprune.report.data`), or None.
        profile: where the time went, if it was measured; of a resumed run, since then.
        warnings: what the user should know to judge the result, in sentences.
    """

    target: Target
    masks: Mapping[str, Tensor]
    method: str
    preset: str | None
    origin: str
    sparsity: float
    calibration_agreement: float
    validation_agreement: float
    accuracy: float | None
    dense_accuracy: float | None
    baselines: Mapping[str, BaselineScore]
    provenance: Provenance
    history: Sequence[Generation]
    stopped: str
    evaluations: int
    seconds: float
    settings: Mapping[str, Any]
    perplexity: Mapping[str, float] | None = None
    repaired: RepairedScore | None = None
    compensated: RepairedScore | None = None
    front: Sequence[Mapping[str, float]] = ()
    front_masks: Sequence[Mapping[str, Tensor]] = ()
    trials: Sequence[Mapping[str, Any]] = ()
    latency: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=versions_here)
    report_data: Mapping[str, Any] | None = None
    profile: Profile | None = None
    warnings: Sequence[str] = ()

    def __repr__(self) -> str:
        return result_text(self.record())

    def _repr_html_(self) -> str:
        """Return the main figures and the search curve, for notebooks."""
        return result_html(self.record(), [vars(record) for record in self.history])

    def summary(self) -> LayerTable:
        """Return layer, shape, weights, kept weights and density of every prunable layer.

        It prints as a table, and is a list of dictionaries for `pandas.DataFrame`.
        """
        return LayerTable(
            {
                "layer": layer.name,
                "shape": tuple(self.masks[layer.name].shape),
                "weights": layer.total,
                "kept": layer.kept,
                "density": layer.kept / layer.total,
            }
            for layer in self.layers
        )

    @property
    def layers(self) -> list[LayerCount]:
        """Every prunable layer with its total and kept weights."""
        masks = self.masks.items()
        return [LayerCount(name, mask.numel(), int(mask.count_nonzero())) for name, mask in masks]

    @property
    def kept(self) -> int:
        """Number of kept weights."""
        return sum(layer.kept for layer in self.layers)

    @property
    def actual_sparsity(self) -> float:
        """The fraction of prunable weights that was removed."""
        return 1 - self.kept / self.target.layout.total

    @property
    def parameters(self) -> int:
        """Number of all floating-point weights of the network, prunable or not."""
        return floating_total(self.target.model)

    @property
    def macs(self) -> dict[str, int | None]:
        """Multiply-adds for one input: of the dense network, and of the kept weights."""
        dense = MacCounts.of(self.target).total
        return {"dense": dense, "kept": kept_macs(self.target, self.masks)}

    @property
    def corrected(self) -> dict[str, RepairedScore]:
        """The networks beside the strict one: `repaired`, `compensated`; the last one counts."""
        scores = {"repaired": self.repaired, "compensated": self.compensated}
        return {name: score for name, score in scores.items() if score is not None}

    @property
    def scored_as(self) -> str | None:
        """As which of them masks were scored: `repaired`, `compensated`, or None."""
        return next((name for name, score in self.corrected.items() if score.in_loop), None)

    @property
    def in_loop(self) -> bool:
        """Whether masks were scored after repair or compensation."""
        return self.scored_as is not None

    @property
    def final_scores(self) -> tuple[float, float | None]:
        """Agreement on the validation inputs and accuracy of the last network of the run."""
        last = [(score.validation, score.accuracy) for score in self.corrected.values()]
        return [(self.validation_agreement, self.accuracy), *last][-1]

    @property
    def best_baseline(self) -> str | None:
        """The baseline that agrees most on the validation inputs."""
        return max(self.baselines, key=lambda name: self.baselines[name].agreement, default=None)

    @property
    def gain(self) -> float | None:
        """Validation agreement minus that of the best baseline; at least 0 if evolved.

        With `repair_in_loop` or `compensate`, of both after it.
        """
        best, agreement = self.best_baseline, self.validation_agreement
        if self.scored_as is not None:
            agreement = self.corrected[self.scored_as].validation
        return None if best is None else agreement - self.baselines[best].agreement

    def timed(self, profiler: Profiler | None) -> Result:
        """Return the result with the profile of its run; unchanged without a profiler."""
        return self if profiler is None else replace(self, profile=profiler.profile)

    def state_dict(self) -> dict[str, Any]:
        """Return the pruned network's state: dropped weights are 0, kept ones bit-identical.

        Entries that are no tensors (`get_extra_state`) are kept; files hold the tensors alone.
        """
        return self.target.masked_state(self.masks)

    def pruned_model(self) -> nn.Module:
        """Return a copy of the network with the masks written into its weights."""
        return without_added_hooks(self.target.masked_copy(self.masks))

    def repaired_model(self) -> nn.Module | None:
        """Return a copy of the pruned network with the repair written into it, if there is one."""
        return self._corrected_model(self.repaired)

    def compensated_model(self) -> nn.Module | None:
        """Return a copy of the compensated and repaired network, if there is one."""
        return self._corrected_model(self.compensated)

    def _corrected_model(self, score: RepairedScore | None) -> nn.Module | None:
        if score is None:
            return None
        return without_added_hooks(repaired_copy(self.target, self.masks, score.repair))

    def masked_model(self) -> nn.Module:
        """Return a copy with the masks attached as parametrizations (see `supermask.attach`)."""
        return attach(without_added_hooks(copy.deepcopy(self.target.model)), self.masks)

    def record(self) -> dict[str, Any]:
        """Return the content of `result.json`: plain data."""
        return {
            "schema": RESULT_SCHEMA,
            "target": self.target.name,
            "origin": self.target.origin,
            "weights_sha256": self.target.weights_sha256,
            "method": self.method,
            "preset": self.preset,
            "made_by": self.origin,
            "sparsity": {"asked": self.sparsity, "actual": self.actual_sparsity},
            "budget": self.settings.get("budget", WEIGHTS),
            "macs": self.macs,
            "latency": None if self.latency is None else dict(self.latency),
            "parameters": self.parameters,
            "layers": [vars(layer) for layer in self.layers],
            "agreement": {
                "calibration": self.calibration_agreement,
                "validation": self.validation_agreement,
            },
            "accuracy": {"dense": self.dense_accuracy, "pruned": self.accuracy},
            "perplexity": None if self.perplexity is None else dict(self.perplexity),
            "baselines": {name: vars(score) for name, score in self.baselines.items()},
            "best_baseline": self.best_baseline,
            "gain": self.gain,
            "provenance": vars(self.provenance),
            "repaired": None if self.repaired is None else self.repaired.record(),
            "compensated": None if self.compensated is None else self.compensated.record(),
            "front": [dict(point) for point in self.front],
            "trials": [dict(trial) for trial in self.trials],
            "warnings": list(self.warnings),
            "stopped": self.stopped,
            "evaluations": self.evaluations,
            "seconds": round(self.seconds, 3),
            "seed": self.settings["seed"],
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "profile": None if self.profile is None else self.profile.record(),
        }
