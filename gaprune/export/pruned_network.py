"""What is exported: a pruned network's state and masks, from a run folder or from a result."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gaprune.config import read_config
from gaprune.errors import GapruneError, InputError
from gaprune.io.run_files import CONFIG, MASK, PRUNED, RECORD, REPAIRED
from gaprune.io.weights import load_state
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module
from gaprune.runs.directory import inputs_config, load_masks
from gaprune.runs.job import JOB_KEYS, make_job
from gaprune.runs.result import Result

_WHERE = ("workers", "gpus_per_worker", "ray_address", "device", "precision")
"""Settings that ask for machines: a run is exported on others than those that it searched on."""


@dataclass(frozen=True, eq=False)
class PrunedNetwork:
    """A pruned network, ready to be written.

    Attributes:
        state: its state dict; what the masks drop is 0.
        masks: parameter name → bool of its shape, true where the weight stays.
        record: the content of `result.json`.
        config: what was asked for, as in `config.toml`; without a target where a network in
            memory was pruned.
        repaired: whether the repair is written into the state.
        find_target: loads the dense network; see `PrunedNetwork.target`.
    """

    state: Mapping[str, Tensor] = field(repr=False)
    masks: Mapping[str, Tensor] = field(repr=False)
    record: Mapping[str, Any] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    repaired: bool
    find_target: Callable[[], Target] = field(repr=False)

    @property
    def name(self) -> str:
        """What the dense network is called."""
        return str(self.record["target"])

    @property
    def figures(self) -> tuple[float | None, float | None]:
        """Agreement with the dense network on the validation inputs, and accuracy, of this state."""
        repaired = self.record.get("repaired")
        if self.repaired and repaired:
            return repaired["validation"], repaired["accuracy"]
        return self.record["agreement"]["validation"], self.record["accuracy"]["pruned"]

    def target(self) -> Target:
        """Return the dense network.

        Raises:
            InputError: it cannot be loaded, or is not the one that was pruned.
        """
        target = self.find_target()
        if target.weights_sha256 != self.record["weights_sha256"]:
            raise InputError(
                f"model: the weights of {target.name} are not those that were pruned (SHA-256 "
                f"{target.weights_sha256[:12]}…, {str(self.record['weights_sha256'])[:12]}… in the "
                "run); name the same network and checkpoint"
            )
        return target

    def network(self, target: Target) -> nn.Module:
        """Return a frozen copy of the dense network that holds this state."""
        model = copy.deepcopy(target.model)
        model.load_state_dict(dict(self.state))
        return model


def pruned_of(
    run: Result | str | Path, *, strict: bool = False, model: nn.Module | None = None
) -> PrunedNetwork:
    """Return what there is to export.

    Args:
        run: what `gaprune.prune` returned, or a run folder.
        strict: the network without repair, where the run repaired it.
        model: the dense network, where the run pruned one in memory; only formats that need the
            network itself ask for it.

    Raises:
        InputError: no run there, or one that has not ended.
        GapruneError: its files are damaged.
    """
    if isinstance(run, Result):
        return _of_result(run, strict=strict)
    return _of_folder(Path(run).expanduser(), run, strict=strict, model=model)


def _of_result(result: Result, *, strict: bool) -> PrunedNetwork:
    repaired = None if strict else result.repaired_model()
    state = result.state_dict() if repaired is None else repaired.state_dict()
    return PrunedNetwork(
        state={name: value.detach().cpu().clone() for name, value in state.items()},
        masks={name: mask.cpu() for name, mask in result.masks.items()},
        record=result.record(),
        config=_config_of(result),
        repaired=repaired is not None,
        find_target=lambda: result.target,
    )


def _config_of(result: Result) -> dict[str, Any]:
    used = {key: value for key, value in result.settings.items() if value is not None}
    origin = {} if result.target.zoo is None else {"target": result.target.zoo}
    return origin | inputs_config(result.target.inputs) | used


def _of_folder(
    place: Path, shown: str | Path, *, strict: bool, model: nn.Module | None
) -> PrunedNetwork:
    if not place.is_dir():
        raise InputError(f"run: there is no folder {shown}; name the folder of a run")
    if not (place / RECORD).is_file():
        raise InputError(
            f"run: {shown} holds no {RECORD}; name the folder of a run that has ended (gaprune "
            "resume goes on with one that has not)"
        )
    try:
        record = json.loads((place / RECORD).read_text(encoding="utf-8"))
        masks = load_masks(place)
        repaired = (place / REPAIRED).is_file() and not strict
        state = load_state(place / (REPAIRED if repaired else PRUNED))
        config = read_config(place / CONFIG)
        _check(record, masks, state)
    except (ValueError, KeyError, TypeError, OSError) as error:  # InputErrors too: damaged files
        raise GapruneError(f"run: {shown} is damaged ({error}); prune again") from error
    return PrunedNetwork(
        state=state,
        masks=masks,
        record=record,
        config=config,
        repaired=repaired,
        find_target=lambda: find_target(config, f"the run in {shown}", model),
    )


def find_target(config: Mapping[str, Any], what: str, model: nn.Module | None = None) -> Target:
    """Load the dense network that a configuration names.

    Args:
        config: keys as in `config.toml`.
        what: whose network it is; messages say it.
        model: the network, where the configuration names none.

    Raises:
        InputError: it names none, or what it names cannot be loaded.
    """
    if model is not None:
        return target_from_module(
            model,
            inputs=_inputs(config),
            name=str(config.get("target", "model")),
            prune_also=tuple(config.get("prune_also", ())),
        )
    if "target" not in config:
        raise InputError(
            f"model: {what} is of a network in memory; give it as model=… in Python, or write "
            "target and weights into config.toml"
        )
    stated = {key: value for key, value in config.items() if key not in _WHERE}
    return make_job({**stated, "device": "cpu"}).load()[0]


def _inputs(config: Mapping[str, Any]) -> InputOptions:
    stated = {
        key.field: key.parse(config[key.name], key.name)
        for key in JOB_KEYS
        if key.field and key.name in config
    }
    return InputOptions(**stated)


def _check(
    record: Mapping[str, Any], masks: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    """Raise unless the files of a run belong together.

    Raises:
        ValueError: they do not.
    """
    stated = {layer["name"]: (layer["total"], layer["kept"]) for layer in record["layers"]}
    found = {name: (mask.numel(), int(mask.count_nonzero())) for name, mask in masks.items()}
    if stated != found:
        raise ValueError(f"{MASK} does not hold the layers of {RECORD}")
    for name, mask in masks.items():
        if name not in state or state[name].shape != mask.shape:
            raise ValueError(f"{MASK} does not fit the weights: {name!r}")
        if state[name][~mask].count_nonzero():
            raise ValueError(f"{name!r} has weights that its mask drops")
    for key in ("target", "weights_sha256", "agreement", "accuracy", "provenance", "sparsity"):
        record[key]
