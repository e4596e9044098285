"""What the user wrote behind `--calibration` and `--validation`: generators, files, levels of the data ladder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gaprune import plugins
from gaprune.calibration.files import ALIASES, read_samples
from gaprune.calibration.generators.draws import InputGenerator
from gaprune.calibration.generators.noise import NOISE
from gaprune.calibration.generators.procedural import GENERATORS
from gaprune.calibration.samples import Samples
from gaprune.errors import InputError, unknown_name
from gaprune.io.user_code import call_user
from gaprune.models.input_spec import InputSpec

PROCEDURAL, IMPRESSIONS, NOISY, AUTO = "procedural", "impressions", "noise", "auto"
INVERSION = "inversion"
OPTIMISED = (IMPRESSIONS, INVERSION)  # made from generated starts by gradients
FILE_LEVELS = ("unlabelled", "labelled", "proxy")  # prefixes of a path; a bare path is unlabelled
PATH_FORMS = ("PATH", "labelled:PATH", "proxy:PATH")


@dataclass(frozen=True)
class CalibrationFile:
    """A file of inputs and the level that the user says it is."""

    level: str
    path: str

    def read(self, spec: InputSpec) -> Samples:
        """Read the file; labels are kept on the level `labelled` only, where there must be some."""
        samples = read_samples(self.path, spec)
        if self.level != "labelled":
            return Samples(samples.inputs, None, f"{self.path} without labels ({self.level})")
        if samples.labels is None:
            raise InputError(
                f"calibration inputs: {self.path} holds no labels; drop the prefix 'labelled:', or give a file "
                "with labels (npz keys x and y, or IMAGES+LABELS)"
            )
        return samples


@dataclass(frozen=True)
class Request:
    """What `--calibration` asks for.

    Attributes:
        names: generators, and `procedural` for the mixture that the teacher picks.
        files: inputs from files.
        impressions: whether class impressions are wanted.
        inversion: whether inputs inverted from BatchNorm are wanted.
    """

    names: tuple[str, ...]
    files: tuple[CalibrationFile, ...]
    impressions: bool
    inversion: bool


def available_generators(spec: InputSpec) -> dict[str, InputGenerator]:
    """Return every generator for this kind of input by name; noise is one of them.

    Those of plug-ins come last, and are imported when they are called.
    """
    own = {**GENERATORS[spec.kind], NOISY: NOISE[spec.kind]["uniform"]}
    taken = (*own, AUTO, PROCEDURAL, *OPTIMISED, *ALIASES)
    added = plugins.plugin_names(plugins.GENERATORS + spec.kind, taken)
    return {**own, **{name: partial(_added, name) for name in added}}


def _added(name: str, spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw from a plug-in's generator, and look at what comes.

    Raises:
        InputError: it is broken, or gives something else than inputs.
    """
    drawn = plugins.find_plugin(
        plugins.GENERATORS + spec.kind,
        name,
        lambda plugin, held: call_user(
            plugins.require_function(plugin, held), spec, count, generator, where=plugin.title
        ),
    )
    shape, dtype = (count, *spec.shape), torch.int64 if spec.kind == "tokens" else torch.float32
    if isinstance(drawn, Tensor) and drawn.shape == shape and drawn.dtype is dtype:
        most = spec.vocabulary - 1 if spec.kind == "tokens" else 1
        if bool(((drawn >= 0) & (drawn <= most)).all()):  # NaN fails too
            return drawn
    came = f"{drawn.dtype} {list(drawn.shape)}" if isinstance(drawn, Tensor) else type(drawn)
    rule = "0 to 1" if dtype is torch.float32 else "the vocabulary"
    raise InputError(
        f"calibration inputs: plug-in {name!r} must give {dtype} {list(shape)} in {rule}, got {came}"
        + ("" if not isinstance(drawn, Tensor) else f" from {drawn.min()} to {drawn.max()}")
    )


def parse_calibration(calibration: Sequence[str], spec: InputSpec) -> Request:
    """Sort what `--calibration` lists; `auto` is known and left out (`gaprune.calibration.auto`).

    Raises:
        InputError: an empty list, or a name that is no generator and no path.
    """
    known = [AUTO, PROCEDURAL, *OPTIMISED, *available_generators(spec)]
    chosen = (AUTO, *OPTIMISED)
    if not calibration:
        raise InputError(f"calibration inputs: name at least one of {', '.join(known)}, or a file")
    return Request(
        names=tuple(name for name in calibration if name in known and name not in chosen),
        files=tuple(
            parse_file("calibration", text, known) for text in calibration if text not in known
        ),
        impressions=IMPRESSIONS in calibration,
        inversion=INVERSION in calibration,
    )


def parse_file(argument: str, text: str, known: Sequence[str]) -> CalibrationFile:
    """Split `level:path`; something that can't be a path is reported as an unknown name."""
    head, _, tail = text.partition(":")
    level, path = (head, tail) if head in FILE_LEVELS else (FILE_LEVELS[0], text)
    looks_like_path = any(mark in path for mark in "./\\+")
    if path not in ALIASES and not looks_like_path and not (path and Path(path).exists()):
        raise unknown_name(argument, text, [*known, *ALIASES, *PATH_FORMS])
    return CalibrationFile(level, path)
