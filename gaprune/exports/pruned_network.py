"""What an export writes: the state and masks of a pruned network, from a run or from a result."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.errors import GapruneError, InputError
from gaprune.io.bounded_reading import read_object
from gaprune.io.run_files import (
    COMPENSATED,
    CONFIG,
    MASK,
    PRUNED,
    RECORD,
    REPAIRED,
    REPORT_DATA,
    read_record,
    read_run_config,
)
from gaprune.io.trusted_code import check_code, may_run
from gaprune.io.weights import apply_state, load_state, sha256_of, tensors_of
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module
from gaprune.runs.directory import load_masks, network_config
from gaprune.runs.job import make_job
from gaprune.runs.live_networks import live_network
from gaprune.runs.option_keys import JOB_KEYS
from gaprune.runs.result import Result

_CORRECTED = {COMPENSATED: "compensated", REPAIRED: "repaired"}  # the first of them is exported
# An export ignores the settings of the machine that searched.
_MACHINE_SETTINGS = ("workers", "gpus_per_worker", "ray_address", "device", "precision")


@dataclass(frozen=True)
class ExportOptions:
    """Options of a format."""

    half: bool = False  # round the kept weights to float16
    codebook: int | None = None  # number of values that a layer's kept weights share (k-means)
    compress: bool = True  # with Zstandard where that is smaller
    flush_subnormals: bool = False  # write subnormal weights, which slow processors down, as 0

    def check(self) -> None:
        """Raise InputError unless the options fit each other."""
        if self.half and self.codebook is not None:
            raise InputError("half: can't be combined with codebook; leave one of them out")
        if self.codebook is not None and not 1 <= self.codebook <= 1 << 16:
            raise InputError(f"codebook: must be from 1 to 65,536 values, got {self.codebook}")


@dataclass(frozen=True, eq=False)
class PrunedNetwork:
    """A pruned network, ready to be written."""

    # its state dict, 0 where a mask removes a weight
    state: Mapping[str, Tensor] = field(repr=False)
    # parameter name → bool of its shape, true where the weight is kept
    masks: Mapping[str, Tensor] = field(repr=False)
    record: Mapping[str, Any] = field(repr=False)  # the content of `result.json`
    # settings as in `config.toml`; without a target where the network was in memory
    config: Mapping[str, Any] = field(repr=False)
    # what `state` holds: `compensated`, `repaired`, or None for the strict network
    corrected: str | None
    # loads the dense network; use `target()`, which checks it
    find_target: Callable[[], Target] = field(repr=False)
    # whether code that `config` names may run, now and later
    trusted: bool = False
    # the content of `report.json`, empty where it is missing
    report_data: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The name of the dense network."""
        return str(self.record["target"])

    @property
    def scores(self) -> tuple[float, float | None]:
        """Agreement on the validation inputs and test accuracy that the run measured on it."""
        if self.corrected is not None:
            corrected = self.record[self.corrected]
            return corrected["validation"], corrected["accuracy"]
        return self.record["agreement"]["validation"], self.record["accuracy"]["pruned"]

    def target(self) -> Target:
        """Load the dense network.

        Raises:
            InputError: it can't be loaded, or its weights aren't those that were pruned.
        """
        target = self.find_target()
        if target.weights_sha256 != self.record["weights_sha256"]:
            raise InputError(
                f"model: the weights of {target.name} are not those that were pruned (SHA-256 "
                f"{target.weights_sha256[:12]}…, {str(self.record['weights_sha256'])[:12]}… in the "
                "run); name the same network and checkpoint"
            )
        return target

    def traced_target(self) -> Target:
        """Load the dense network for a format that traces it; see `target`.

        Raises:
            InputError: also if it takes several inputs.
        """
        target = self.target()
        if target.inputs.examples:
            raise InputError(
                f"format: {target.name} takes several inputs, and this format traces networks with "
                "one; export it as dense or sparse"
            )
        return target

    def network(self, target: Target) -> nn.Module:
        """Return a frozen copy of the dense network that holds this state."""
        model = copy.deepcopy(target.model)
        apply_state(model, self.state)
        return model


def read_pruned(
    run: Result | str | Path,
    *,
    strict: bool = False,
    repaired: bool = False,
    model: nn.Module | None = None,
    trust_code: bool = False,
) -> PrunedNetwork:
    """Return the pruned network of a result or a run directory; the arguments are `export`'s.

    Raises:
        InputError: no run there, one that hasn't ended, or its files aren't those it wrote; or it
            has no network as asked for.
    """
    if strict and repaired:
        raise InputError("repaired: can't be combined with strict; leave one of them out")
    stages = () if strict else ("repaired",) if repaired else tuple(_CORRECTED.values())
    if isinstance(run, Result):
        return _from_result(run, stages, repaired=repaired)
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise InputError(f"run: there is no folder {run}; name a run directory")
    record = read_record(folder)
    try:
        masks = load_masks(folder)
        # A run with repair or compensation stores several networks.
        files = {stage: name for name, stage in _CORRECTED.items() if (folder / name).is_file()}
        corrected = _first_stage(stages, files, repaired=repaired)
        state = load_state(folder / (PRUNED if corrected is None else files[corrected]))
        config = read_run_config(folder, record)
        known = (folder / REPORT_DATA).is_file()
        report_data = read_object(folder / REPORT_DATA) if known else {}
        _check_run(record, masks, state)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"run: {run} is damaged ({error}); prune again") from error
    return PrunedNetwork(
        state=state,
        masks=masks,
        record=record,
        config=config,
        corrected=corrected,
        find_target=lambda: find_target(
            config, folder / CONFIG, model=model, trust_code=trust_code
        ),
        trusted=trust_code or may_run(config, folder / CONFIG),
        report_data=report_data,
    )


def _first_stage(
    stages: Sequence[str], available: Mapping[str, object], *, repaired: bool
) -> str | None:
    """Return the first stage that a run has, or None for the strict network."""
    corrected = next((stage for stage in stages if stage in available), None)
    if repaired and corrected is None:
        raise InputError(
            "repaired: this run has no repaired network; leave it out, or prune with --repair"
        )
    return corrected


def _from_result(result: Result, stages: Sequence[str], *, repaired: bool) -> PrunedNetwork:
    corrected = _first_stage(stages, result.corrected, repaired=repaired)
    models = {"repaired": result.repaired_model, "compensated": result.compensated_model}
    model = None if corrected is None else models[corrected]()
    state = result.state_dict() if model is None else model.state_dict()
    config = {key: value for key, value in result.settings.items() if value is not None}
    config = network_config(result.target) | config
    if result.target.zoo is not None:
        config = {"target": result.target.zoo} | config
    return PrunedNetwork(
        state={name: value.detach().cpu().clone() for name, value in tensors_of(state).items()},
        masks={name: mask.cpu() for name, mask in result.masks.items()},
        record=result.record(),
        config=config,
        corrected=corrected,
        find_target=lambda: result.target,
        report_data=result.report_data or {},
    )


def _check_run(
    record: Mapping[str, Any], masks: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    """Raise ValueError or KeyError unless the files of a run belong together."""
    expected = {layer["name"]: (layer["total"], layer["kept"]) for layer in record["layers"]}
    counts = {name: (mask.numel(), int(mask.count_nonzero())) for name, mask in masks.items()}
    # Each file may be intact and still belong to another run.
    if expected != counts:
        raise ValueError(f"{MASK} does not hold the layers of {RECORD}")
    for name, mask in masks.items():
        if name not in state or state[name].shape != mask.shape:
            raise ValueError(f"{MASK} does not fit the weights: {name!r}")
        if state[name][~mask].count_nonzero():
            raise ValueError(f"{name!r} has weights that its mask removes")


def find_target(
    config: Mapping[str, Any],
    source: Path,
    *,
    model: nn.Module | None = None,
    trust_code: bool = False,
    remedy: str = "",
) -> Target:
    """Load the dense network that a configuration names.

    Args:
        config: settings as in `config.toml`.
        source: the file that they were read from.
        model: the network, where the configuration names none.
        trust_code: whether a factory may run in any case; see `gaprune.io.trusted_code`.
        remedy: see `check_code`.

    Raises:
        InputError: it names none, or what it names can't be loaded or may not run.
    """
    if model is None and "target" not in config:
        model = live_network(source.parent)
    if model is not None:
        options = {
            key.field: key.parse(config[key.name], key.name)
            for key in JOB_KEYS
            if key.field and key.name in config
        }
        return target_from_module(
            model,
            inputs=InputOptions(**options),
            name=config.get("target"),
            prune_also=tuple(config.get("prune_also", ())),
            ignore=tuple(config.get("ignore", ())),
            output=config.get("output"),
            fold_parametrizations=bool(config.get("fold_parametrizations")),
        )
    if "target" not in config:
        raise InputError(
            f"model: {source} is of a network in memory; give it as model=… in Python (target=… of "
            "measure), or write target and weights into config.toml"
        )
    # The dense network alone: an objective that the run used is not called.
    check_code(
        {"target": config["target"]},
        source,
        trust_code=trust_code,
        remedy=remedy,
    )
    job = {key: value for key, value in config.items() if key not in _MACHINE_SETTINGS}
    # On the CPU: an export must give the same bits on every machine.
    return make_job({**job, "device": "cpu"}).load()[0]


def to_half(name: str, values: Tensor) -> Tensor:
    """Round values to float16; raise InputError if a finite one would become infinite."""
    rounded = values.to(torch.float16)
    # Values that were infinite before stay so; rounding must not create new ones.
    if (rounded.isinf() & ~values.isinf()).any():
        raise InputError(
            f"half: {name!r} holds {float(values.abs().max()):g}, and float16 at most 65,504; "
            "leave half out"
        )
    return rounded


def check_written(read_back: Mapping[str, Tensor], written: Mapping[str, Tensor]) -> None:
    """Raise GapruneError unless the tensors read back have the bits that were written."""
    if sha256_of(read_back) != sha256_of(written):
        raise GapruneError(
            "export: the file read back is not what was written; check the disk, and try again"
        )
