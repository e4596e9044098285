"""What `--calibration` and `--validation` ask for: generators, optimised inputs, files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gaprune import plugins
from gaprune.calibration.files import ALIASES, read_samples
from gaprune.calibration.generators.procedural import GENERATORS, NOISE
from gaprune.calibration.generators.random_draws import InputGenerator
from gaprune.calibration.samples import Samples
from gaprune.errors import InputError, unknown_name
from gaprune.io.user_code import call_user
from gaprune.models.input_spec import InputSpec

AUTO, PROCEDURAL, NOISY = "auto", "procedural", "noise"
IMPRESSIONS, INVERSION, SELF_TEXT = "impressions", "inversion", "self-text"
FROM_NETWORK = (IMPRESSIONS, INVERSION, SELF_TEXT)  # inputs that are made with the network
FILE_LEVELS = ("unlabelled", "labelled", "proxy")  # prefixes of a path; a bare path is unlabelled
PATH_FORMS = ("PATH", "labelled:PATH", "proxy:PATH")


@dataclass(frozen=True)
class CalibrationFile:
    """A file of inputs and its data level, which only the user can know."""

    level: str
    path: str

    def read(self, spec: InputSpec) -> Samples:
        """Read the file; only the level `labelled` keeps the labels, and requires them."""
        samples = read_samples(self.path, spec)
        if self.level != "labelled":
            return Samples(samples.inputs, None, f"{self.path} without labels ({self.level})")
        if samples.labels is None:
            raise InputError(
                f"calibration inputs: {self.path} holds no labels; remove the prefix 'labelled:', "
                "or give a file with labels (npz keys x and y, or IMAGES+LABELS)"
            )
        return samples


@dataclass(frozen=True)
class CalibrationRequest:
    """What `--calibration` asks for."""

    names: tuple[str, ...]  # generators, and `procedural` for a mixture that suits the network
    files: tuple[CalibrationFile, ...]  # files of inputs
    impressions: bool  # whether class impressions are wanted
    inversion: bool  # whether inputs inverted from BatchNorm statistics are wanted
    self_text: bool = False  # whether texts that a language model writes are wanted


def available_generators(spec: InputSpec) -> dict[str, InputGenerator]:
    """Return all generators for this kind of input by name: procedural, noise, plug-ins.

    A plug-in is imported only when its generator is called.
    """
    built_in = {**GENERATORS[spec.kind], NOISY: NOISE[spec.kind]}
    reserved = (*built_in, AUTO, PROCEDURAL, *FROM_NETWORK, *ALIASES)
    added = plugins.plugin_names(plugins.GENERATORS + spec.kind, reserved)
    return {**built_in, **{name: partial(_draw_from_plugin, name) for name in added}}


def _draw_from_plugin(name: str, spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw from a plug-in's generator and check dtype, shape and range of the result."""
    inputs = plugins.find_plugin(
        plugins.GENERATORS + spec.kind,
        name,
        lambda plugin, loaded: call_user(
            plugins.require_function(plugin, loaded), spec, count, generator, where=plugin.title
        ),
    )
    shape, dtype = (count, *spec.shape), torch.int64 if spec.kind == "tokens" else torch.float32
    actual = str(type(inputs))
    if isinstance(inputs, Tensor):
        largest = spec.vocabulary - 1 if spec.kind == "tokens" else 1
        # Comparisons with NaN are false, so NaN fails here as well.
        in_range = bool(((inputs >= 0) & (inputs <= largest)).all())
        if in_range and inputs.shape == shape and inputs.dtype is dtype:
            return inputs
        actual = f"{inputs.dtype} {list(inputs.shape)} from {inputs.min()} to {inputs.max()}"
    rule = "0 to 1" if dtype is torch.float32 else "the vocabulary"
    raise InputError(
        f"calibration inputs: plug-in {name!r} must return {dtype} {list(shape)} in {rule}, "
        f"got {actual}"
    )


def parse_calibration(calibration: Sequence[str], spec: InputSpec) -> CalibrationRequest:
    """Sort the words of `--calibration`; `auto` is accepted and left out (see `auto`).

    Raises:
        InputError: an empty list, or a word that is neither a generator nor a path.
    """
    known = [AUTO, PROCEDURAL, *FROM_NETWORK, *available_generators(spec)]
    if not calibration:
        raise InputError(f"calibration inputs: name at least one of {', '.join(known)}, or a file")
    return CalibrationRequest(
        names=tuple(
            word for word in calibration if word in known and word not in (AUTO, *FROM_NETWORK)
        ),
        files=tuple(
            parse_file("calibration", word, known, spec.in_memory)
            for word in calibration
            if word not in known
        ),
        impressions=IMPRESSIONS in calibration,
        inversion=INVERSION in calibration,
        self_text=SELF_TEXT in calibration,
    )


def parse_validation(validation: str, spec: InputSpec) -> CalibrationFile | None:
    """Return the file that `--validation` names; None for `auto` and for a generator."""
    known = [AUTO, *available_generators(spec)]
    if validation in known:
        return None
    return parse_file("validation", validation, known, spec.in_memory)


def parse_file(
    argument: str, text: str, known: Sequence[str], in_memory: Collection[str] = ()
) -> CalibrationFile:
    """Split `level:path`; an `InputError` lists the `known` names if the text cannot be a path.

    Names of data `in_memory` are read as files are.
    """
    head, _, tail = text.partition(":")
    # C:\data.npz has a colon as well, so only the known prefixes count.
    level, path = (head, tail) if head in FILE_LEVELS else (FILE_LEVELS[0], text)
    looks_like_path = any(mark in path for mark in "./\\+")
    if (
        path not in (*ALIASES, *in_memory)
        and not looks_like_path
        and not (path and Path(path).exists())
    ):
        raise unknown_name(argument, text, [*known, *ALIASES, *PATH_FORMS])
    return CalibrationFile(level, path)
