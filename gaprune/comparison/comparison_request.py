"""A comparison as flat keys, such as a command line or a TOML file states them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gaprune.calibration.samples import Samples
from gaprune.comparison.methods.iterative import parse_schedule
from gaprune.comparison.methods.method_registry import find_methods
from gaprune.comparison.methods.training import TrainingOptions
from gaprune.comparison.spec import ComparisonSpec
from gaprune.config import Settings
from gaprune.errors import unknown_name
from gaprune.evaluation.labelled import read_labelled, zoo_train
from gaprune.models.target import Target
from gaprune.pattern_names import UNSTRUCTURED, pattern_sparsity
from gaprune.runs.job import PruneJob, make_job
from gaprune.runs.option_keys import (
    ALL,
    COMPARISON_KEYS,
    DEFAULT_SPARSITIES,
    IMP,
    JOB_KEYS,
    LINEAR,
    SPEC_KEYS,
    TRAINING_KEYS,
    UNUSED,
)


@dataclass(frozen=True)
class ComparisonRequest:
    """What one `gaprune compare` does."""

    job: PruneJob  # the target and its input options, the test data and the settings
    spec: ComparisonSpec  # what is compared
    train: str | None = None  # labelled training data; None: that of the zoo, for a zoo network

    def load(self) -> tuple[Target, Samples | None, Samples | None]:
        """Load the target, the training data and the test data.

        Raises:
            InputError: one of them is wrong; the message says what.
        """
        target, test = self.job.load()
        if self.train is None:
            return target, zoo_train(target), test
        return target, read_labelled("train", self.train, target), test

    def as_config(self) -> dict[str, Any]:
        """Return everything as flat plain data; `make_request` makes an equal request from it."""
        spec = self.spec
        training = asdict(spec.training)
        steps = spec.schedule
        if not isinstance(steps, str):
            steps = ",".join(f"{step.sparsity}:{step.epochs}" for step in steps)
        values = {
            **{key: value for key, value in self.job.as_config().items() if key not in UNUSED},
            **{key.name: getattr(spec, key.name, None) for key in SPEC_KEYS},
            "sparsity": spec.sparsities,
            # a schedule adds the method `imp`, so the default is left out
            "schedule": None if steps == LINEAR else steps,
            "train": self.train,
            **{key.name: training[field] for field, key in TRAINING_KEYS.items()},
        }
        lists = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
        return {key: value for key, value in lists.items() if value is not None}


def make_request(values: Mapping[str, Any]) -> ComparisonRequest:
    """Make a request from flat keys.

    Args:
        values: keys of `COMPARISON_KEYS`, of `JOB_KEYS`, and fields of `Settings` except `UNUSED`;
            numbers may be text. A field of `UNUSED` at its default is ignored.

    Raises:
        InputError: an unknown key, or a value that breaks its rule; before anything is loaded.
    """
    keys = {key.name: key for key in COMPARISON_KEYS}
    # `repair = false` in a config.toml of a pruning run asks for nothing
    values = {
        name: value
        for name, value in values.items()
        if name in keys or name not in UNUSED or value != Settings.model_fields[name].default
    }
    settings = [name for name in Settings.model_fields if name not in UNUSED]
    known = [*keys, *(key.name for key in JOB_KEYS), *settings]
    for name in values:
        if name not in known:
            raise unknown_name("config key", name, known)
    parsed = {name: keys[name].parse(value, name) for name, value in values.items() if name in keys}
    implied = pattern_sparsity(values.get("pattern", UNSTRUCTURED))
    default = DEFAULT_SPARSITIES if implied is None else (implied,)
    sparsities = tuple(parsed.get("sparsity", default))
    of_job = {name: value for name, value in values.items() if name not in keys}
    # a job needs one sparsity; rows state theirs
    job = make_job({**of_job, "sparsity": max(sparsities, default=0.5)})
    training = {
        field: parsed[key.name] for field, key in TRAINING_KEYS.items() if key.name in parsed
    }
    fields = {key.name: parsed[key.name] for key in SPEC_KEYS[1:] if key.name in parsed}
    if "schedule" in fields:
        fields["schedule"] = parse_schedule(fields["schedule"])
    if "schedule" in fields and not {ALL, IMP} & set(fields.get("methods", (ALL,))):
        fields["methods"] = (*fields["methods"], IMP)
    spec = ComparisonSpec(
        sparsities, settings=job.settings, training=TrainingOptions(**training), **fields
    )
    # unknown methods fail before loading
    find_methods(spec.methods, spec.settings.pattern, spec.schedule)
    return ComparisonRequest(job, spec, parsed.get("train"))
