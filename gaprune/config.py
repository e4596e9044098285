"""Every setting of a pruning run, validated before anything is computed or written."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from gaprune.errors import InputError, unknown_name
from gaprune.pattern_names import UNSTRUCTURED, pattern_sparsity

EVOLVED = "evolved"
_ADDRESS = re.compile(r"auto|none|(ray://)?[^\s/]+:\d{1,5}")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
LARGEST_SPARSITY = 0.999  # tried for a `max_drop`, where no largest one is stated
NEUTRAL = ("workers", "ray_address", "task_timeout", "retries", "checkpoint_every")
"""Settings that change how long a run takes and what it survives, and nothing that it finds."""


class Settings(BaseModel):
    """The settings of `gaprune prune`; every one is a command-line option and a TOML key.

    Names from closed lists (preset, scope, objective, method, calibration inputs) are checked by the rooms that
    own the lists; here are the types and the numeric rules.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    sparsity: float = Field(
        gt=0,
        lt=1,
        description="fraction of prunable weights to remove; with max-drop the largest tried",
    )
    max_drop: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="instead: remove as much as costs no more agreement on the validation inputs than this, "
        "0.01 is one point; several searches, to each of which the limits apply",
    )
    method: str = Field(EVOLVED, description="'evolved', or the name of a one-shot criterion")
    initial_criteria: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="one-shot criteria that the search starts from; they alone "
        "are computed, and only to them the result is compared",
    )
    preset: str = Field("default", description="default, black-box or classic")
    scope: str = Field("allocated", description="allocated, global or layer")
    pattern: str = Field(
        UNSTRUCTURED,
        description="what is removed together: unstructured (single weights), N:M (N of every M "
        "weights along a layer's inputs stay, such as 2:4; it says the sparsity itself), "
        "ROWSxCOLUMNS (blocks of outputs by inputs, such as 4x1) or channel (with all that makes "
        "and reads it); sparsity then counts blocks or channels",
    )
    budget: str = Field(
        "weights",
        description="what sparsity is a part of: weights (or blocks, or channels), macs (multiply-"
        "adds for one input) or latency (measured, of the compact network; pattern channel)",
    )
    width_multiple: int = Field(
        1,
        ge=1,
        description="with pattern channel and budget macs or latency: so many channels of every "
        "layer stay, or a multiple, or all; processors take 8 or 16 at once, and runtimes are slow "
        "with other numbers",
    )
    budget_macs: int | None = Field(
        None,
        ge=1,
        description="with budget latency: the multiply-adds that stay, instead of measuring which "
        "are fast enough",
    )
    latency_batch: int = Field(
        1, ge=1, description="inputs of one pass, with budget latency, on threads-per-worker"
    )
    latency_runtime: str = Field(
        "torch", description="what runs it, with budget latency: torch, torch-compile, onnxruntime"
    )
    floor: float = Field(
        0.0, ge=0, lt=1, description="fraction of every layer that is kept, whatever its scores"
    )
    objective: str = Field(
        "auto", description="auto, kl, agreement, accuracy, relative-error or file.py:function"
    )
    calibration: tuple[str, ...] = Field(
        ("auto",), description="generators or files shown to the network"
    )
    validation: str = Field("auto", description="generator or file that judges and never selects")
    calibration_count: int = Field(1024, ge=1, description="inputs that score the candidates")
    validation_count: int = Field(1024, ge=1, description="inputs that judge them")
    gradient_count: int = Field(
        16384, ge=1, description="inputs of a file used for gradient steps, at most"
    )
    impressions: int = Field(
        1024, ge=1, description="class impressions, or sequences of token ids, to make"
    )
    inversions: int = Field(512, ge=1, description="inputs to invert from BatchNorm statistics")
    calibration_seconds: float | None = Field(
        None, gt=0, description="seconds for making inputs; they then depend on the machine"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of every random choice")
    workers: int = Field(1, ge=1, description="1 searches in this process, more start Ray actors")
    threads_per_worker: int = Field(
        1, ge=1, description="torch threads of each worker, and of what runs here"
    )
    gpus_per_worker: float = Field(
        0.0, ge=0, description="GPUs of each worker; several share one that has a fraction of it"
    )
    device: str = Field(
        "auto",
        description="where candidates are tried: auto (a GPU where there is one), cpu, cuda or "
        "cuda:N; of several workers, those with GPUs use them and the others do not",
    )
    precision: str = Field(
        "float32",
        description="arithmetic that selects candidates and steers their gradients, never that "
        "which judges them: float32, bfloat16, float16 (on a GPU), or auto: bfloat16 on a GPU",
    )
    ray_address: str = Field(
        "none",
        description="Ray cluster that the workers are on: auto, ray://HOST:PORT, HOST:PORT, or "
        "none: this machine",
    )
    task_timeout: float | None = Field(
        None,
        gt=0,
        description="seconds after which one evaluation hangs and its worker is replaced",
    )
    retries: int = Field(
        2, ge=0, description="how often an evaluation that lost its worker is tried again"
    )
    checkpoint_every: int = Field(
        1, ge=0, description="generations between checkpoints in the run folder; 0 keeps none"
    )
    population: int | None = Field(None, ge=2, description="individuals that survive a generation")
    offspring: int | None = Field(None, ge=1, description="children per generation")
    steps: int | None = Field(None, ge=1, description="gradient steps of one refinement")
    learning_rate: float | None = Field(
        None, gt=0, description="length of a gradient step in score ranks"
    )
    batch: int | None = Field(None, ge=1, description="inputs per gradient step")
    batch_cache: int | None = Field(
        None,
        ge=0,
        description="batches of generated inputs that gradient steps choose from; 0 draws new "
        "inputs for every step",
    )
    clip: float | None = Field(
        None, gt=0, description="cut a score's gradient at so many root mean squares of all"
    )
    density_search: int | None = Field(
        None,
        ge=0,
        description="generations before the others that change only how many weights each layer "
        "keeps; 0 where the network has few layers",
    )
    warmup: int | None = Field(
        None,
        ge=0,
        description="gradient steps of one generation before all others, which begins on the "
        "network as it would be after repair and ends on it as it is; 0 for none",
    )
    statistics_loss: float | None = Field(
        None,
        ge=0,
        description="weight in gradient steps of how far every layer's statistics drift from the "
        "dense network's",
    )
    feature_loss: float | None = Field(
        None,
        ge=0,
        description="weight in gradient steps of how far what norms put out is from the dense "
        "network's on the same inputs; 0 does not look",
    )
    generations: int | None = Field(None, ge=0, description="stop after so many generations")
    evaluations: int | None = Field(None, ge=1, description="stop after so many evaluations")
    seconds: float | None = Field(None, gt=0, description="stop after so much time")
    stagnation: int | None = Field(
        None, ge=1, description="stop after so many generations without gain"
    )
    repair_in_loop: bool = Field(
        False, description="choose masks for how they do after repair; implies repair"
    )
    patience: int | None = Field(
        None, ge=1, description="stop after so many generations that lose on the validation inputs"
    )
    repair: bool = Field(
        False,
        validate_default=True,
        description="correct BatchNorm statistics and biases on the calibration inputs at the end",
    )
    pareto: bool = Field(False, description="evolve agreement against sparsity with NSGA-II")

    @field_validator("repair", mode="after")
    @classmethod
    def _repairs(cls, value: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - pydantic's form
        return value or bool(info.data.get("repair_in_loop"))

    @field_validator("gpus_per_worker", mode="after")
    @classmethod
    def _shares(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise PydanticCustomError("share", "must be up to 1, or a whole number of GPUs")
        return value

    @field_validator("device", mode="after")
    @classmethod
    def _devices(cls, value: str) -> str:
        if not _DEVICE.fullmatch(value):
            raise PydanticCustomError(
                "device", "must be auto, cpu, cuda, or cuda:N for one of several GPUs"
            )
        return value

    @field_validator("ray_address", mode="after")
    @classmethod
    def _addresses(cls, value: str) -> str:
        if not _ADDRESS.fullmatch(value):
            raise PydanticCustomError(
                "address", "must be auto, none, HOST:PORT or ray://HOST:PORT (ports are numbers)"
            )
        return value

    def replace(self, **changes: Any) -> Settings:
        """Return a validated copy with some settings changed."""
        return make_settings({**self.model_dump(), **changes})


def make_settings(values: Mapping[str, Any]) -> Settings:
    """Validate settings; the first broken rule becomes one clear message.

    Raises:
        InputError: an unknown key, a value outside its rule, or neither sparsity nor max_drop.
    """
    for key in values:
        if key not in Settings.model_fields:
            raise unknown_name("setting", key, Settings.model_fields)
    if values.get("sparsity") is None:
        implied = pattern_sparsity(values.get("pattern", UNSTRUCTURED))
        if implied is not None:
            values = {**values, "sparsity": implied}
    if values.get("sparsity") is None:
        if values.get("max_drop") is None:
            raise InputError(
                "sparsity: none given; pass --sparsity, the fraction of weights to remove, such as "
                "0.95, or --max-drop, the agreement that may be lost, such as 0.01"
            )
        values = {**values, "sparsity": LARGEST_SPARSITY}
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        came = "nothing" if first["type"] == "missing" else repr(first["input"])
        meaning = Settings.model_fields[key.split(".")[0]].description
        hint = f" ({key}: {meaning})" if meaning else ""
        rule = first["msg"].replace("Input should be", "must be").partition(", unable")[0]
        raise InputError(f"{key}: {rule}, got {came}{hint}") from None


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings a TOML file states.

    Raises:
        InputError: the file is missing or is not TOML.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise InputError(f"config: cannot read {path} ({error.strerror})") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"config: {path} is not valid TOML: {error}") from error
