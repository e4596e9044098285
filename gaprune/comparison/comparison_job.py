"""One comparison in full as flat keys, such as a command line or a TOML file states them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gaprune.calibration.samples import Samples
from gaprune.comparison.methods.method_registry import ALL, SCHEDULED, find_methods
from gaprune.comparison.methods.schedule import PruningStep, parse_schedule
from gaprune.comparison.methods.training import DECAYS, OPTIMISERS, TrainingOptions
from gaprune.comparison.spec import DEFAULT_SPARSITIES, UNUSED, ComparisonSpec
from gaprune.config import Settings
from gaprune.errors import unknown_name
from gaprune.evaluation.labelled import read_labelled, zoo_train
from gaprune.models.target import Target
from gaprune.pattern_names import UNSTRUCTURED, pattern_sparsity
from gaprune.runs.job import JOB_KEYS, PruneJob, make_job
from gaprune.runs.option_keys import Key, count, names, number, numbers, sizes, text


def _schedule(value: object, name: str) -> tuple[PruningStep, ...]:
    return tuple(parse_schedule(text(value, name)))


_QUESTION_KEYS = (
    Key("sparsity", numbers, "fractions of prunable weights to remove, joined by commas "
        f"(default: {','.join(map(str, DEFAULT_SPARSITIES))})", metavar="NUMBERS"),
    Key("methods", names, "names, FILE.py:FUNCTION for a criterion of your own, or "
        f"{ALL} (the default); --list-methods shows them"),
    Key("seeds", sizes, "one row a seed for every method with chance (default: 0)",
        metavar="NUMBERS"),
    Key("epochs", number, "of training at one step of a schedule; may be a fraction (default: 1)",
        metavar="NUMBER"),
    Key("schedule", _schedule, "pairs of sparsity and epochs for imp-schedule: 0.5:1,0.9:3"),
    Key("clusters", count, "values of a layer's codebook, for the method clustered (default: 16)",
        metavar="INTEGER"),
)  # fmt: skip
_TRAINING_KEYS: dict[str, Key] = {
    "optimiser": Key("optimiser", text, f"{', '.join(OPTIMISERS)} (default: adam)"),
    "rate": Key("train_learning_rate", number, "step size of the optimiser (default: 0.001)",
                metavar="NUMBER"),
    "batch": Key("train_batch", count, "inputs per step (default: 128)", metavar="INTEGER"),
    "weight_decay": Key("weight_decay", number, "L2 penalty (default: 0)", metavar="NUMBER"),
    "decay": Key("decay", text,
                 f"of the step size while training: {', '.join(DECAYS)} (default: constant)"),
}  # fmt: skip
_TRAIN = Key("train", text, "labelled training data; a zoo network brings its own", metavar="FILE")
COMPARISON_KEYS = (*_QUESTION_KEYS, _TRAIN, *_TRAINING_KEYS.values())
"""Every key of a comparison beside those of a job."""


@dataclass(frozen=True)
class ComparisonRequest:
    """What one `gaprune compare` does.

    Attributes:
        job: the target, what it takes, the test data and the settings.
        spec: what is compared.
        train: labelled training data; None: that of the zoo, if it is a zoo network.
    """

    job: PruneJob
    spec: ComparisonSpec
    train: str | None = None

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
        """Return everything stated as flat plain data; `make_request` makes the same of it."""
        spec = self.spec
        training = asdict(spec.training)
        stated = {
            **{key: v for key, v in self.job.as_config().items() if key not in UNUSED},
            **{key.name: getattr(spec, key.name, None) for key in _QUESTION_KEYS},
            "sparsity": spec.sparsities,
            "schedule": ",".join(f"{s.sparsity}:{s.epochs}" for s in spec.schedule) or None,
            "train": self.train,
            **{key.name: training[field] for field, key in _TRAINING_KEYS.items()},
        }
        listed = {key: list(v) if isinstance(v, tuple) else v for key, v in stated.items()}
        return {key: value for key, value in listed.items() if value is not None}


def make_request(values: Mapping[str, Any]) -> ComparisonRequest:
    """Make a request of flat keys.

    Args:
        values: keys of `COMPARISON_KEYS`, of `JOB_KEYS`, and fields of `Settings` but `UNUSED`;
            numbers may come as text. One of `UNUSED` at its default asks for nothing: a
            `config.toml` from before it was one may state it.

    Raises:
        InputError: an unknown key, or a value that breaks its rule. Nothing has been loaded then.
    """
    own = {key.name: key for key in COMPARISON_KEYS}
    values = {
        name: value
        for name, value in values.items()
        if name in own or name not in UNUSED or value != Settings.model_fields[name].default
    }
    settings = [name for name in Settings.model_fields if name not in UNUSED]
    for name in values:
        if name not in own and name not in settings and name not in (k.name for k in JOB_KEYS):
            raise unknown_name("config key", name, [*own, *(k.name for k in JOB_KEYS), *settings])
    stated = {name: own[name].parse(value, name) for name, value in values.items() if name in own}
    implied = pattern_sparsity(values.get("pattern", UNSTRUCTURED))
    usual = DEFAULT_SPARSITIES if implied is None else (implied,)
    sparsities = tuple(stated.get("sparsity", usual))
    rest = {name: value for name, value in values.items() if name not in own}
    job = make_job({**rest, "sparsity": max(sparsities, default=0.5)})
    trained = {
        field: stated[key.name] for field, key in _TRAINING_KEYS.items() if key.name in stated
    }
    asked = {key.name: stated[key.name] for key in _QUESTION_KEYS[1:] if key.name in stated}
    if "schedule" in asked:
        asked["methods"] = tuple(dict.fromkeys((*asked.get("methods", (ALL,)), SCHEDULED)))
    spec = ComparisonSpec(
        sparsities, settings=job.settings, training=TrainingOptions(**trained), **asked
    )
    find_methods(spec.methods, spec.settings.pattern)
    return ComparisonRequest(job, spec, stated.get("train"))
