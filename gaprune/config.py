"""All settings of a pruning run, validated before anything is computed or written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from gaprune.errors import InputError, describe, unknown_name
from gaprune.pattern_names import CHANNEL, LATENCY, UNSTRUCTURED, pattern_sparsity

EVOLVED = "evolved"
_FORMS = {  # setting → the form of its text, and the rule in words
    "device": (r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda, or cuda:N for one of several GPUs"),
    "ray_address": (
        r"auto|none|(ray://)?[^\s/]+:\d{1,5}",
        "auto, none, HOST:PORT or ray://HOST:PORT (ports are numbers)",
    ),
}
LARGEST_SPARSITY = 0.999  # tried for a `max_drop` without a sparsity
NEUTRAL = ("workers", "ray_address", "task_timeout", "retries", "checkpoint_every")
"""Settings that never change the masks, only how long a run takes and what it survives."""
ARITHMETIC = ("threads_per_worker", "gpus_per_worker", "device")
"""Settings that decide about order and place of floating-point sums."""
LIMITS = ("generations", "evaluations", "seconds", "stagnation", "patience")
CHANGEABLE = (*NEUTRAL, *ARITHMETIC, *LIMITS)
"""Settings that may change when a run continues."""
RENAMED = {
    "starts": "initial_criteria",
    "probes": "calibration",
    "guard": "validation",
    "probe_count": "calibration_count",
    "guard_count": "validation_count",
    "pool_count": "gradient_count",
    "probe_budget": "calibration_seconds",
    "rate": "learning_rate",
    "stock": "batch_cache",
    "allocation": "density_search",
    "continuation": "warmup",
    "drift": "statistics_loss",
    "features": "feature_loss",
}
"""Names before gaprune 0.3 → names now. Old names are refused, and the error states the new one."""


class Settings(BaseModel):
    """The settings of `gaprune prune`; every one is a command-line option and a TOML key.

    Names from closed lists (preset, scope, objective, method, …) are checked in the packages that
    own the lists (`gaprune.runs.setup.check_settings`); types and numbers are checked here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    sparsity: float = Field(
        gt=0,
        lt=1,
        description="fraction of prunable weights to remove; with --max-drop the largest",
    )
    max_drop: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="instead of a sparsity: the agreement on the validation inputs that may be "
        "lost (0.01 is one percentage point); several searches, each with the limits below",
    )
    speed_up: float | None = Field(
        None,
        gt=1,
        description="instead of a sparsity: how many times as fast as the dense network the one "
        "without some channels must be; means pattern channel and budget latency",
    )
    method: str = Field(EVOLVED, description="'evolved', or the name of a one-shot criterion")
    initial_criteria: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="one-shot criteria that seed the search; others are not computed",
    )
    preset: str = Field("default", description="kind of search")
    scope: str = Field(
        "allocated",
        description="whether every layer has its own evolved share of the weights to keep, all "
        "weights share one ranking, or every layer keeps the same fraction",
    )
    pattern: str = Field(
        UNSTRUCTURED,
        description="what is removed together: unstructured (single weights), N:M such as 2:4, "
        "blocks of ROWSxCOLUMNS such as 4x1, channel, or expert; N:M keeps N of every M weights "
        "along a layer's inputs, which implies the sparsity; otherwise sparsity counts blocks, "
        "channels or experts",
    )
    budget: str = Field(
        "weights",
        description="what sparsity is a fraction of: weights (or blocks, or channels), macs "
        "(multiply-adds for one input) or latency (measured, needs pattern channel)",
    )
    width_multiple: int = Field(
        1,
        ge=1,
        description="with pattern channel and budget macs or latency: keep a multiple of this many "
        "channels per layer; hardware is fast with multiples of 8 or 16",
    )
    budget_macs: int | None = Field(
        None, ge=1, description="with budget latency: multiply-adds to keep, instead of measuring"
    )
    latency_batch: int = Field(1, ge=1, description="with budget latency: inputs per pass")
    latency_runtime: str = Field("torch", description="with budget latency: where it is measured")
    layer_sparsity: tuple[str, ...] | None = Field(
        None,
        description="PATTERN=FRACTION: the fraction to remove from the layers that a name, glob or "
        "layer type fits; the other layers share the rest of the budget",
    )
    floor: float = Field(
        0.0, ge=0, lt=1, description="fraction of every layer that always stays, rounded up"
    )
    objective: str = Field(
        "auto",
        description="auto, kl, scaled-kl, agreement, accuracy, relative-error or file.py:function",
    )
    calibration: tuple[str, ...] = Field(
        ("auto",), description="generators or files of the inputs that score candidates"
    )
    validation: str = Field(
        "auto", description="generator or file of the inputs that choose the final candidate"
    )
    calibration_count: int = Field(1024, ge=1, description="number of calibration inputs")
    validation_count: int = Field(1024, ge=1, description="number of validation inputs")
    gradient_count: int = Field(
        16384, ge=1, description="most inputs of a file that gradient steps use"
    )
    impressions: int = Field(
        1024, ge=1, description="number of class impressions, or of token sequences, to make"
    )
    inversions: int = Field(512, ge=1, description="number of inputs inverted from BatchNorm")
    calibration_seconds: float | None = Field(
        None, gt=0, description="time for making inputs; they then depend on the machine"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of every random choice")
    workers: int = Field(1, ge=1, description="1 searches in this process, more are Ray actors")
    threads_per_worker: int = Field(1, ge=1, description="torch threads of each worker")
    gpus_per_worker: float = Field(
        0.0, ge=0, description="GPUs of each worker; several can share one: 0.25"
    )
    device: str = Field(
        "auto", description="where candidates are scored: auto (a GPU if there is one), cpu, cuda:N"
    )
    precision: str = Field(
        "float32",
        description="arithmetic of the search; float16 on GPUs only, auto: bfloat16 on a GPU; "
        "validation is always exact",
    )
    ray_address: str = Field(
        "none", description="Ray cluster: auto, ray://HOST:PORT, HOST:PORT, or none: this machine"
    )
    task_timeout: float | None = Field(
        None, gt=0, description="seconds before an evaluation is considered hung and repeated"
    )
    retries: int = Field(
        2, ge=0, description="how often an evaluation is repeated if a worker dies"
    )
    checkpoint_every: int = Field(1, ge=0, description="generations between checkpoints; 0: none")
    population: int | None = Field(None, ge=2, description="individuals per generation")
    offspring: int | None = Field(None, ge=1, description="children per generation")
    steps: int | None = Field(None, ge=1, description="gradient steps per child")
    learning_rate: float | None = Field(
        None, gt=0, description="length of a gradient step in score ranks"
    )
    batch: int | None = Field(None, ge=1, description="inputs per gradient step")
    batch_cache: int | None = Field(
        None,
        ge=0,
        description="number of stored batches that gradient steps choose from; 0: new inputs for "
        "every step",
    )
    clip: float | None = Field(
        None, gt=0, description="clip gradients of scores at this multiple of their RMS"
    )
    density_search: int | None = Field(
        None, ge=0, description="first generations that search only the density of every layer"
    )
    warmup: int | None = Field(
        None,
        ge=0,
        description="gradient steps of a first generation that fades repair out",
    )
    statistics_loss: float | None = Field(
        None, ge=0, description="weight of the distance of BatchNorm statistics in gradient steps"
    )
    feature_loss: float | None = Field(
        None, ge=0, description="weight of the distance of norm outputs in gradient steps"
    )
    generations: int | None = Field(None, ge=0, description="stop after this many generations")
    evaluations: int | None = Field(None, ge=1, description="stop after this many evaluations")
    seconds: float | None = Field(
        None,
        gt=0,
        description="stop a search after this time, set-up included; accuracy on test data is not",
    )
    stagnation: int | None = Field(
        None, ge=1, description="stop after this many generations without improvement"
    )
    repair_in_loop: bool = Field(False, description="score candidates after repair; implies repair")
    patience: int | None = Field(
        None, ge=1, description="stop after this many generations that lose on validation inputs"
    )
    repair: bool = Field(
        False,
        validate_default=True,
        description="correct BatchNorm statistics and biases at the end",
    )
    compensate: bool = Field(
        False,
        description="fit outputs to the dense network's by changing kept weights, at the end; "
        "with pattern channel in the search too",
    )
    pareto: bool = Field(False, description="search agreement against sparsity with NSGA-II")

    # `repair` comes after `repair_in_loop` among the fields, so the latter is known here
    @field_validator("repair", mode="after")
    @classmethod
    def _imply_repair(cls, value: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - pydantic's form
        return value or bool(info.data.get("repair_in_loop"))

    @field_validator("gpus_per_worker", mode="after")
    @classmethod
    def _check_gpus(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            # Ray divides a GPU among workers, but gives one worker only whole ones
            raise PydanticCustomError("share", "must be up to 1, or a whole number of GPUs")
        return value

    @field_validator("layer_sparsity", "initial_criteria", "calibration", mode="before")
    @classmethod
    def _join_words(cls, value: object) -> object:
        if isinstance(value, Mapping):  # as Python callers write it: {"fc*": 0.3}
            return tuple(f"{pattern}={fraction}" for pattern, fraction in value.items())
        return (value,) if isinstance(value, str) else value

    @field_validator("device", mode="before")
    @classmethod
    def _name_device(cls, value: object) -> object:
        # a torch.device, whose text is its name; importing torch would take a second
        return str(value) if hasattr(value, "type") and hasattr(value, "index") else value

    @field_validator("layer_sparsity", mode="after")
    @classmethod
    def _check_fractions(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for text in value or ():
            pattern, _, fraction = text.rpartition("=")
            if not pattern or not re.fullmatch(r"0(\.\d*)?|\.\d+", fraction):
                rule = "must be PATTERN=FRACTION, a fraction from 0 to below 1, such as fc1=0.3"
                raise PydanticCustomError("fraction", rule)
        return value

    @field_validator(*_FORMS, mode="after")
    @classmethod
    def _check_form(cls, value: str, info: ValidationInfo) -> str:
        form, rule = _FORMS[str(info.field_name)]
        if not re.fullmatch(form, value):
            raise PydanticCustomError("form", "must be {rule}", {"rule": rule})
        return value

    @property
    def scores_corrected(self) -> bool:
        """Whether candidates are scored after repair or compensation."""
        return self.repair_in_loop or self.compensates_channels

    @property
    def compensates_channels(self) -> bool:
        """Whether candidates are scored after compensation; of single weights, it only follows."""
        return self.compensate and self.pattern == CHANNEL

    def replace(self, **changes: Any) -> Settings:
        """Return a validated copy with some settings changed."""
        return make_settings({**self.model_dump(), **changes})


def unknown_setting(what: str, name: str, valid: Iterable[str]) -> InputError:
    """Return the error for a name that is no setting: with its new name if it was renamed."""
    if name in RENAMED:
        return InputError(f"{name}: renamed in gaprune 0.3; write {RENAMED[name]} instead")
    return unknown_name(what, name, valid)


def _without_speed_up(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in which a speed-up above 1 is the fraction of the latency to remove."""
    if (stated_factor := values.get("speed_up")) is None:
        return dict(values)
    try:
        factor = float(stated_factor)  # numbers may come as text
    except (TypeError, ValueError):
        factor = math.nan
    if not 1 < factor < math.inf:
        raise InputError(
            f"speed_up: must be a number above 1, got {describe(stated_factor)}; 2 means half of "
            "the latency"
        )
    implied = {"sparsity": 1 - 1 / factor, "pattern": CHANNEL, "budget": LATENCY}
    usual = {name: Settings.model_fields[name].get_default() for name in implied}
    stated = [n for n, v in implied.items() if values.get(n) not in (None, usual[n], v)]
    stated += [] if values.get("max_drop") is None else ["max_drop"]
    if stated:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in stated)
        raise InputError(f"speed_up: {factor:g} says what to remove; leave {options} out")
    return {**values, **implied, "speed_up": None}


def make_settings(values: Mapping[str, Any]) -> Settings:
    """Validate settings; the first broken rule becomes one message.

    Raises:
        InputError: an unknown name, a value outside its rule, or neither sparsity nor max_drop.
    """
    for key in values:
        if key not in Settings.model_fields:
            raise unknown_setting("setting", key, Settings.model_fields)
    values = _without_speed_up(values)
    if values.get("sparsity") is None:
        implied = pattern_sparsity(values.get("pattern", UNSTRUCTURED))
        if implied is None and values.get("max_drop") is not None:
            implied = LARGEST_SPARSITY
        if implied is None:
            raise InputError(
                "sparsity: missing; pass --sparsity, the fraction of weights to remove, such as "
                "0.95, or --max-drop, the agreement that may be lost, such as 0.01"
            )
        values = {**values, "sparsity": implied}
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:
        # one problem at a time, in our words: pydantic's list of all of them is hard to read
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        came = "nothing" if first["type"] == "missing" else describe(first["input"])
        meaning = Settings.model_fields[key.split(".")[0]].description
        rule = first["msg"].replace("Input should be", "must be").partition(", unable")[0]
        rule = rule.replace("a valid tuple", "names")  # every tuple among the settings
        raise InputError(f"{key}: {rule}, got {came} ({key}: {meaning})") from None
