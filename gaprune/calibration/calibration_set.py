"""Which inputs a run uses: for scoring candidates, for gradient steps, for validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gaprune.calibration.auto import filled_up, resolve_calibration, statistics_divergence
from gaprune.calibration.domain_fit import (
    SAMPLE_INPUTS,
    domain_fit,
    information_of,
    sample_count,
)
from gaprune.calibration.generator_choice import GeneratorChoice, choose_generators
from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.calibration.generators.procedural import GENERATORS
from gaprune.calibration.generators.token_sequences import UNRANKED
from gaprune.calibration.inversion.augment import Augmentation, augment, moving_axes, with_copies
from gaprune.calibration.inversion.batchnorm import InversionOptions
from gaprune.calibration.inversion.synthesis import Synthesis
from gaprune.calibration.parse import (
    AUTO,
    INVERSION,
    NOISY,
    PROCEDURAL,
    CalibrationRequest,
    available_generators,
    parse_validation,
)
from gaprune.calibration.provenance import highest_level, samples_sha256
from gaprune.calibration.samples import Samples, concatenate
from gaprune.callbacks import Observer
from gaprune.config import Settings
from gaprune.errors import InputError
from gaprune.models.forward import batched_forward
from gaprune.models.input_spec import InputSpec
from gaprune.models.target import Target
from gaprune.records import LOW_FIT, Provenance

LEAST_DOMAIN = 256  # inputs that statistics of layers need, or that validate beside a few others
KEPT_FIT = 0.95  # of the information, for inputs that are moved
VALIDATION_FRACTION = 0.2  # of a file or of inverted inputs, held out for validation

_SAMPLES = ("search", "validation", "gradient_inputs")  # in checkpoints


@dataclass(frozen=True)
class CalibrationSet:
    """All inputs of a run.

    Attributes:
        mutual_information: of each procedural generator in nats, best first; empty if only files
            are used or BatchNorm statistics decide.
    """

    search: Samples  # candidates are scored on them
    validation: Samples  # the final candidate is chosen on them; never used by the search
    mixture: GeneratorMixture | None  # draws new inputs for gradient steps
    gradient_inputs: Samples | None  # stored inputs for gradient steps
    gradient_share: float  # fraction of a gradient batch that comes from `gradient_inputs`
    augmentation: Augmentation | None  # how `gradient_inputs` are changed for every batch
    domain_count: int | None  # how many of the `gradient_inputs` are the `domain_inputs`
    provenance: Provenance  # of all inputs
    mutual_information: Mapping[str, float]

    @property
    def domain_inputs(self) -> Samples:
        """The inputs nearest to the training data, on which layer statistics are measured.

        These are files or inverted inputs without the generated ones, else `search`.
        """
        if self.domain_count is None or self.gradient_inputs is None:
            return self.search
        return self.gradient_inputs.take(torch.arange(self.domain_count))

    def first(self, count: int) -> CalibrationSet:
        """Return a set of the first inputs, for a run that is out of time before its search."""
        search, validation = (
            samples.take(torch.arange(min(count, len(samples.inputs))))
            for samples in (self.search, self.validation)
        )
        provenance = replace(
            self.provenance,
            samples=len(search.inputs),
            fresh=False,
            sha256=samples_sha256(search),
            validation_samples=len(validation.inputs),
            validation_sha256=samples_sha256(validation),
        )
        return replace(
            self,
            search=search,
            validation=validation,
            mixture=None,
            gradient_inputs=None,
            gradient_share=0.0,
            domain_count=None,
            provenance=provenance,
        )


def make_calibration_set(
    target: Target,
    settings: Settings,
    generator: torch.Generator,
    observer: Observer | None = None,
) -> CalibrationSet:
    """Make the calibration and validation inputs that the settings ask for.

    A file is split, and a part of it is held out for validation. If files hold fewer inputs than a
    search needs, generated ones fill up both. Without files one generator makes the validation
    inputs and the others the search inputs; with inversion, half of the validation inputs are
    inverted ones.

    Raises:
        InputError: an unknown word in `calibration` or `validation`, or a file that does not fit
            the network.
    """
    # The order of the calls below fixes the order of the random draws, hence the masks of a seed.
    spec, observer = target.inputs, observer or Observer()
    resolved = resolve_calibration(settings.calibration, target)
    resolved.report(observer)
    request = resolved.request
    # a file may hold fewer
    count = 0 if request.files else settings.calibration_count + settings.validation_count
    spec.check_memory(count, "calibration inputs")
    stored = [file.read(spec).to(target.dtype) for file in request.files]
    few = _are_few(stored, request, settings)
    if few:
        request = filled_up(request, target)
    moved = few and _may_be_moved(target, stored)
    seconds = settings.calibration_seconds
    if request.self_text:  # before the validation inputs, which are a part of it
        mixture = GeneratorMixture(spec, {UNRANKED[0]: 1.0}, target.dtype)
        total = settings.calibration_count + settings.validation_count
        written = Synthesis(target, mixture, generator, observer).self_text(total, seconds)
        stored.append(written)
    choice, validation = _validation_inputs(
        target, request, settings, generator, stored, observer, few=few, moved=moved
    )
    mixture = GeneratorMixture(spec, choice.shares, target.dtype)
    synthesis = Synthesis(target, mixture, generator, observer)
    if request.impressions:
        stored.append(synthesis.impressions(settings.impressions, seconds))
    if request.inversion:
        inverted = synthesis.inverted(settings.inversions, InversionOptions(seconds=seconds))
        if settings.validation == AUTO and not request.files:
            validation, inverted = mix_validation(inverted, validation, generator)
        stored.append(with_copies(inverted, spec, generator))

    # Without named generators the mixture only provides starting points.
    fresh = mixture if request.names else None
    gradient_inputs = None
    if stored:
        joined = concatenate(stored)
        gradient_inputs = joined.take(joined.random_order(generator)[: settings.gradient_count])
    # Half of every gradient batch is generated if there are stored inputs as well.
    share = 0.0 if gradient_inputs is None else 1.0 if fresh is None else 0.5
    search = _search_samples(settings.calibration_count, fresh, gradient_inputs, share, generator)
    sources = [samples.source for samples in stored]
    if fresh is not None:
        sources.append(f"generated for gradient steps: {fresh.description}")
    if resolved.choice is not None:
        sources.append(resolved.choice.sentence)
    # The hash covers the stored inputs; generated ones follow from the seed.
    in_memory = gradient_inputs or search
    return CalibrationSet(
        search=search,
        validation=validation,
        mixture=fresh,
        gradient_inputs=gradient_inputs,
        gradient_share=share,
        augmentation=_augmentation(request, spec, moved=moved),
        domain_count=_domain_count(gradient_inputs, request, settings, few=few),
        provenance=Provenance(
            level=highest_level(_data_levels(request, settings.validation, spec)),
            sources=tuple(sources),
            samples=len(in_memory.inputs),
            fresh=fresh is not None,
            sha256=samples_sha256(in_memory),
            validation=validation.source,
            validation_samples=len(validation.inputs),
            validation_sha256=samples_sha256(validation),
            domain_fit=_fit(target, stored[: len(request.files)], choice.mutual_information),
            statistics_divergence=statistics_divergence(target),
        ),
        mutual_information=choice.mutual_information,
    )


def _are_few(stored: Sequence[Samples], request: CalibrationRequest, settings: Settings) -> bool:
    """Return whether files hold fewer inputs than a search needs, so that others fill up.

    Stated words are enough as they are, and labels would be lost beside generated inputs.
    """
    others = request.names or request.impressions or request.inversion or request.self_text
    labelled = any(samples.labels is not None for samples in stored)
    total = sum(len(samples.inputs) for samples in stored)
    return bool(stored) and not (others or labelled) and total < settings.calibration_count


def _validation_inputs(  # noqa: PLR0913 # what a run validates on depends on all of it
    target: Target,
    request: CalibrationRequest,
    settings: Settings,
    generator: torch.Generator,
    stored: list[Samples],
    observer: Observer,
    *,
    few: bool,
    moved: bool,
) -> tuple[GeneratorChoice, Samples]:
    """Choose the generators, and take the validation inputs: a part of the first file, if any.

    If there are `few`, as many generated inputs, or `LEAST_DOMAIN`, are added; `moved` adds copies
    of that part. The file in `stored` loses the part.
    """
    held_out = bool(stored) and settings.validation == AUTO
    count, spec = settings.validation_count, target.inputs
    choice = choose_generators(
        target, request, settings.validation, generator, held_out=held_out and not few
    )
    parts: list[Samples] = []
    if held_out:
        if len(stored[0].inputs) < 2:
            raise InputError(
                f"calibration inputs: {stored[0].source} must hold at least 2 inputs, one for the "
                f"search and one for validation; got {len(stored[0].inputs)}"
            )
        part, stored[0] = _hold_out(stored[0], count, generator)
        parts.append(with_copies(part, spec, generator) if moved else part)
        count = min(count, max(len(parts[0].inputs), LEAST_DOMAIN))
    if choice.validation is not None and _impressions_validate(target, request, settings, choice):
        starts = GeneratorMixture(spec, {choice.validation: 1.0}, target.dtype)
        synthesis = Synthesis(target, starts, generator, observer)
        parts.append(synthesis.impressions(count, settings.calibration_seconds))
    elif choice.validation is not None:
        parts.append(_make_validation(choice.validation, count, target, generator))
    return choice, concatenate(parts)


def _impressions_validate(
    target: Target, request: CalibrationRequest, settings: Settings, choice: GeneratorChoice
) -> bool:
    """Return whether impressions, started from the chosen generator, validate in its place.

    Where no generator fits, the network predicts few classes on generated inputs, and a mask that
    always predicts these agrees. Impressions show every class: they rank one-shot masks as real
    inputs do (Spearman 0.87 to 0.97; generators -0.26 to 0.66).
    """
    if not request.impressions or settings.validation != AUTO or target.inputs.kind == "tokens":
        return False
    fit = _fit(target, (), choice.mutual_information)
    return fit is not None and fit < LOW_FIT


def _may_be_moved(target: Target, stored: Sequence[Samples]) -> bool:
    """Return whether the network separates shifted and mirrored inputs as well as the originals.

    Convolutional networks do; in others moved inputs are of another domain.
    """
    if not moving_axes(target.inputs):
        return False
    inputs = concatenate(stored).inputs
    moved = augment(inputs, target.inputs, torch.Generator().manual_seed(0))
    before, after = (
        information_of(batched_forward(target.model, part.to(target.device))) or 0.0
        for part in (inputs, moved)
    )
    return after >= KEPT_FIT * before > 0


def _domain_count(
    gradient_inputs: Samples | None, request: CalibrationRequest, settings: Settings, *, few: bool
) -> int | None:
    """Return how many stored inputs the statistics of layers are measured on; None: on others."""
    if gradient_inputs is None or not request.names or request.impressions:
        return None
    count = min(len(gradient_inputs.inputs), settings.calibration_count)
    return None if few and count < LEAST_DOMAIN else count  # statistics of few inputs are noise


def _fit(
    target: Target, files: Sequence[Samples], information: Mapping[str, float]
) -> float | None:
    """Return the domain fit of the inputs from files, else of the best generator."""
    outputs = batched_forward(target.model, target.example())
    if information_of(outputs) is None:
        return None
    if files:
        inputs = concatenate(files).inputs[:SAMPLE_INPUTS].to(target.device)
        known = information_of(batched_forward(target.model, inputs)) or 0.0
        return domain_fit(known, outputs.shape[1], len(inputs))
    if not information:
        return None
    count = sample_count(target, information)
    return domain_fit(max(information.values()), outputs.shape[1], count)


def _augmentation(
    request: CalibrationRequest, spec: InputSpec, *, moved: bool
) -> Augmentation | None:
    inverted = request.inversion and not request.files and bool(moving_axes(spec))
    return Augmentation(moves=True, mixes=inverted) if moved or inverted else None


def draw_calibration_set(target: Target, count: int, generator: torch.Generator) -> CalibrationSet:
    """Draw calibration and validation inputs from two generators; the network is not run."""
    spec = target.inputs
    first, second, *_ = [*UNRANKED] if spec.kind == "tokens" else [*GENERATORS[spec.kind], NOISY]
    search, validation = (
        _make_validation(name, count, target, generator) for name in (first, second)
    )
    return CalibrationSet(
        search=search,
        validation=validation,
        mixture=None,
        gradient_inputs=None,
        gradient_share=0.0,
        augmentation=None,
        domain_count=None,
        provenance=Provenance(
            level=PROCEDURAL,
            sources=(search.source,),
            samples=count,
            fresh=False,
            sha256=samples_sha256(search),
            validation=validation.source,
            validation_samples=count,
            validation_sha256=samples_sha256(validation),
        ),
        mutual_information={},
    )


def requested_data_levels(settings: Settings, target: Target) -> list[str]:
    """Return every data level that the settings ask for, without reading a file."""
    request = resolve_calibration(settings.calibration, target).request
    return _data_levels(request, settings.validation, target.inputs)


def _data_levels(request: CalibrationRequest, validation: str, spec: InputSpec) -> list[str]:
    levels = [file.level for file in request.files]
    if request.impressions or request.inversion or request.self_text:
        levels.append(INVERSION)
    names = list(request.names)
    # Stated validation inputs choose the final candidate, so their level counts as well.
    if file := parse_validation(validation, spec):
        levels.append(file.level)
    elif validation != AUTO:
        names.append(validation)
    return levels + [NOISY if name == NOISY else PROCEDURAL for name in names]


def _search_samples(
    count: int,
    mixture: GeneratorMixture | None,
    stored: Samples | None,
    share: float,
    generator: torch.Generator,
) -> Samples:
    """Draw the inputs that score candidates, from stored inputs, generators, or both."""
    parts: list[Samples] = []
    if stored is not None:
        parts.append(stored.take(stored.random_order(generator)[: max(1, round(count * share))]))
    if mixture is not None:
        rest = max(1, count - sum(len(part.inputs) for part in parts))
        parts.append(Samples(mixture.draw(rest, generator), None, mixture.description))
    joined = concatenate(parts)
    # Successive halving uses the first inputs only; in random order they are a fair sample.
    return joined.take(joined.random_order(generator))


def _make_validation(
    validation: str, count: int, target: Target, generator: torch.Generator
) -> Samples:
    """Draw validation inputs from a generator, or read at most `count` of them from a file."""
    spec = target.inputs
    if validation in available_generators(spec):
        inputs = GeneratorMixture(spec, {validation: 1.0}, target.dtype).draw(count, generator)
        return Samples(inputs, None, f"generated: {validation}, from another seed")
    file = parse_validation(validation, spec)
    assert file is not None  # every other word is the name of a generator
    samples = file.read(spec).to(target.dtype)
    return samples.take(samples.random_order(generator)[:count])


def mix_validation(
    inverted: Samples, validation: Samples, generator: torch.Generator
) -> tuple[Samples, Samples]:
    """Validate on inverted and on generated inputs, half of each.

    Inputs of one inversion share its flaws. Validation on held-out ones alone would not notice a
    search that overfits these flaws.

    A random fifth of `inverted`, at most half as many as in `validation`, is held out, and as many
    of the generated ones stay. Returns the validation inputs and the rest of `inverted`; both are
    unchanged if one is too small.
    """
    if min(len(inverted.inputs), len(validation.inputs)) < 2:
        return validation, inverted
    held_out, rest = _hold_out(inverted, len(validation.inputs) // 2, generator)
    generated = validation.take(torch.arange(len(held_out.inputs)))
    source = f"{held_out.source}, and as many {validation.source}"
    return concatenate([held_out, generated])._replace(source=source), rest


def _hold_out(samples: Samples, count: int, generator: torch.Generator) -> tuple[Samples, Samples]:
    """Return a random fifth of the samples, at most `count` of them, and the rest."""
    order = samples.random_order(generator)
    size = min(count, max(1, int(VALIDATION_FRACTION * len(order))))
    held_out = samples.take(order[:size])._replace(source=f"held-out part of {samples.source}")
    return held_out, samples.take(order[size:])


def to_record(calibration: CalibrationSet) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a calibration set as plain data and tensors, so that a run resumes on equal inputs.

    The inputs themselves are stored: files may be gone by then, and inputs made under a time limit
    would come out differently. Fresh inputs need only their generators and shares.
    """
    mixture = calibration.mixture
    facts: dict[str, Any] = {
        "mixture": None if mixture is None else list(mixture.shares.items()),
        "gradient_share": calibration.gradient_share,
        "augmentation": calibration.augmentation and asdict(calibration.augmentation),
        "domain_count": calibration.domain_count,
        "provenance": asdict(calibration.provenance),
        "mutual_information": list(calibration.mutual_information.items()),
    }
    tensors: dict[str, Tensor] = {}
    for name in _SAMPLES:
        samples: Samples | None = getattr(calibration, name)
        facts[name] = None if samples is None else samples.source
        if samples is not None:
            tensors[f"{name}/inputs"] = samples.inputs
            if samples.labels is not None:
                tensors[f"{name}/labels"] = samples.labels
    return facts, tensors


def from_record(
    facts: Mapping[str, Any], tensors: Mapping[str, Tensor], target: Target
) -> CalibrationSet:
    """Return the calibration set that `to_record` stored, for the same network."""
    spec, shares = target.inputs, facts["mixture"]
    provenance = facts["provenance"]
    samples = {
        name: Samples(tensors[f"{name}/inputs"], tensors.get(f"{name}/labels"), facts[name])
        for name in _SAMPLES
        if facts[name] is not None
    }
    return CalibrationSet(
        search=samples["search"],
        validation=samples["validation"],
        mixture=None if shares is None else GeneratorMixture(spec, dict(shares), target.dtype),
        gradient_inputs=samples.get("gradient_inputs"),
        gradient_share=facts["gradient_share"],
        augmentation=facts["augmentation"] and Augmentation(**facts["augmentation"]),
        domain_count=facts["domain_count"],
        provenance=Provenance(**{**provenance, "sources": tuple(provenance["sources"])}),
        mutual_information=dict(facts["mutual_information"]),
    )
