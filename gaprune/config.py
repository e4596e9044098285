"""Every setting of a pruning run, validated before anything is computed or written."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gaprune.errors import InputError, unknown_name

EVOLVED = "evolved"


class Settings(BaseModel):
    """The settings of `gaprune prune`; every one is a command-line option and a TOML key.

    Names from closed lists (preset, scope, objective, method, probes) are checked by the rooms that
    own the lists; here are the types and the numeric rules.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    sparsity: float = Field(gt=0, lt=1, description="fraction of prunable weights to remove")
    method: str = Field(EVOLVED, description="'evolved', or the name of a one-shot saliency")
    preset: str = Field("default", description="default, black-box or classic")
    scope: str = Field("allocated", description="allocated, global or layer")
    objective: str = Field("kl", description="kl, agreement, accuracy, relative-error or file.py:function")
    probes: tuple[str, ...] = Field(("procedural", "impressions"), description="generators or files shown to the network")
    guard: str = Field("auto", description="generator or file that judges and never selects")
    probe_count: int = Field(4096, ge=1, description="inputs held for the search")
    guard_count: int = Field(2048, ge=1, description="inputs in the guard set")
    impressions: int = Field(2048, ge=0, description="class impressions to synthesise")
    batch: int = Field(256, ge=1, description="inputs per gradient step")
    seed: int = Field(0, ge=0, lt=2**32)
    workers: int = Field(1, ge=1, description="1 searches in this process, more start Ray actors")
    threads: int = Field(1, ge=1, description="torch threads of each worker")
    population: int = Field(8, ge=2)
    offspring: int = Field(8, ge=1, description="children per generation")
    steps: int = Field(50, ge=1, description="gradient steps of one refinement")
    rate: float = Field(2.0, gt=0, description="length of a gradient step in score ranks")
    generations: int | None = Field(None, ge=0)
    evaluations: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0)
    stagnation: int | None = Field(None, ge=1, description="stop after so many generations without gain")
    pareto: bool = Field(False, description="evolve agreement against sparsity with NSGA-II")

    def replace(self, **changes: Any) -> Settings:
        """Return a validated copy with some settings changed."""
        return make_settings({**self.model_dump(), **changes})


def make_settings(values: Mapping[str, Any]) -> Settings:
    """Validate settings; the first broken rule becomes one clear message.

    Raises:
        InputError: an unknown key, or a value outside its rule.
    """
    for key in values:
        if key not in Settings.model_fields:
            raise unknown_name("setting", key, Settings.model_fields)
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        came = "nothing" if first["type"] == "missing" else repr(first["input"])
        meaning = Settings.model_fields[key.split(".")[0]].description
        hint = f" ({key} is the {meaning})" if meaning else ""
        raise InputError(f"{key}: {first['msg'].lower()}, got {came}{hint}") from None


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
