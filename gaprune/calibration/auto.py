"""What `--calibration auto` stands for, and what replaces an inversion that is impossible.

Procedural inputs are good enough if their statistics resemble those of the training data. A
network with BatchNorm stores the statistics of its training data, so `mixture_fit` measures the
distance. If even the best mixture of generators is far away, inputs are inverted from BatchNorm.
For a classifier without BatchNorm, `domain_fit` measures how well the best generator fits; class
impressions are added if it is low.
The choice depends on the network alone, not on the seed of a run: `auto` in a saved configuration
always means the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gaprune.calibration.disk_cache import cache_key, cached
from gaprune.calibration.domain_fit import (
    FEWEST,
    domain_fit,
    information_of,
    mutual_information,
    sample_count,
)
from gaprune.calibration.generators.procedural import GENERATORS
from gaprune.calibration.generators.random_draws import InputGenerator
from gaprune.calibration.inversion.batchnorm_statistics import (
    BatchNormRecorder,
    batchnorms,
    has_seen_data,
)
from gaprune.calibration.inversion.mixture_fit import (
    CHUNK,
    SAMPLE,
    MixtureFitter,
    measure_moments,
)
from gaprune.calibration.parse import (
    AUTO,
    IMPRESSIONS,
    INVERSION,
    PROCEDURAL,
    SELF_TEXT,
    CalibrationRequest,
    parse_calibration,
)
from gaprune.calibration.weighing import LARGE_BATCH, LARGE_MACS, is_quick, weighing
from gaprune.callbacks import Observer
from gaprune.errors import InputError
from gaprune.models.arguments import EXAMPLES
from gaprune.models.mac_cost import MacCounts
from gaprune.models.target import Target
from gaprune.records import LOW_FIT

# Strokes are 0.02 nats per channel from a network trained on digits; no mixture comes as close to
# a network trained on photographs.
MAX_DIVERGENCE = 0.03
# What is measured of the generators is cached on disk for inputs of so many values, and for large
# networks: it takes up to a minute.
LARGE_INPUT = 1 << 15
UNTRAINED = 0.05  # domain fit: 0.01 or less before training, where impressions show nothing
_SEED = 0  # fixed, so that the choice does not depend on the run's generator

# Weak keys: a cached fitter must not keep a network in memory.
# The inner key is the number of inputs per generator: an estimate must not replace the measurement.
_fitters: WeakKeyDictionary[Target, dict[int, MixtureFitter]] = WeakKeyDictionary()
_information: WeakKeyDictionary[Target, dict[int, dict[str, float]]] = WeakKeyDictionary()
_choices: WeakKeyDictionary[Target, dict[bool, AutoChoice]] = WeakKeyDictionary()  # by `is_quick`


Figure = TypeVar("Figure", bound=float | None)


class AutoChoice(NamedTuple):
    """The words that `auto` stands for, and the reason as a clause."""

    calibration: tuple[str, ...]
    reason: str

    @property
    def sentence(self) -> str:
        """The choice and its reason, for people."""
        return f"auto chose {' and '.join(self.calibration)}: {self.reason}"


class ResolvedCalibration(NamedTuple):
    """What is going to be made.

    Attributes:
        request: the calibration inputs asked for, without those that this network cannot have.
    """

    request: CalibrationRequest
    choice: AutoChoice | None  # what `auto` stands for; None if `--calibration` does not contain it
    fallback: str | None  # a sentence why impressions replace inverted inputs, or None

    def report(self, observer: Observer) -> None:
        """Report a choice other than `procedural`, and a fallback as a warning."""
        if self.choice is not None and self.choice.calibration != (PROCEDURAL,):
            observer.phase("calibration", self.choice.sentence)
        if self.fallback is not None:
            observer.warning(self.fallback)


def resolve_calibration(calibration: Sequence[str], target: Target) -> ResolvedCalibration:
    """Parse `--calibration`, expand `auto`, and replace an impossible inversion.

    Raises:
        InputError: an empty list, or a word that is neither a generator nor a path.
    """
    # Parsing comes first: a wrong word is refused before the network is run to choose.
    request, choice = parse_calibration(calibration, target.inputs), None
    if AUTO in calibration:
        choice = choose_auto(target)
        request = parse_calibration(expand_auto(calibration, target), target.inputs)
    chosen = choice is not None and INVERSION in choice.calibration  # then there is no obstacle
    obstacle = _inversion_obstacle(target) if request.inversion and not chosen else None
    if obstacle is None:
        return ResolvedCalibration(request, choice, None)
    fallback = f"calibration inputs: cannot invert the network ({obstacle}); using impressions"
    return ResolvedCalibration(
        replace(request, inversion=False, impressions=True), choice, fallback
    )


def expand_auto(calibration: Sequence[str], target: Target) -> tuple[str, ...]:
    """Return the words of `--calibration` with `auto` replaced by what it stands for."""
    if AUTO not in calibration:
        return tuple(calibration)
    chosen = choose_auto(target).calibration
    words = (new for word in calibration for new in (chosen if word == AUTO else (word,)))
    return tuple(dict.fromkeys(words))  # each word once, in order


def filled_up(request: CalibrationRequest, target: Target) -> CalibrationRequest:
    """Return a request for files with what `auto` would choose beside them."""
    other = resolve_calibration((AUTO,), target).request
    return replace(other, files=request.files)


def choose_auto(target: Target) -> AutoChoice:
    """Choose inverted inputs if no mixture of generators resembles the training data.

    It depends on the network alone, and is chosen once per target; an estimate does not count.
    """
    known = _choices.setdefault(target, {})
    if is_quick() not in known:
        known[is_quick()] = _choose(target)
    return known[is_quick()]


def _choose(target: Target) -> AutoChoice:
    if target.inputs.examples:
        level = target.inputs.examples.partition(":")[0]
        return AutoChoice((f"{level}:{EXAMPLES}",), "the network takes several inputs")
    if target.inputs.text is not None and target.inputs.text.packs:
        return AutoChoice((SELF_TEXT,), "the network is a causal language model")
    obstacle = _inversion_obstacle(target)
    if obstacle is None and not has_seen_data(target.model):
        obstacle = "its BatchNorms have never seen data"
    if obstacle is None and not _outputs_with_gradient(target).requires_grad:
        obstacle = "it passes no gradients to its inputs"
    if obstacle is not None:
        return _without_statistics(target, obstacle)
    divergence = _settled(lambda: mixture_fitter(target).fit().divergence, target, MAX_DIVERGENCE)
    reason = (
        "the nearest mixture of generators differs from the BatchNorm statistics by "
        f"{divergence:.3f} nats per channel, limit {MAX_DIVERGENCE}"
    )
    far = divergence > MAX_DIVERGENCE
    return AutoChoice((INVERSION, PROCEDURAL) if far else (PROCEDURAL,), reason)


def _settled(measure: Callable[[], Figure], target: Target, *limits: float) -> Figure:
    """Return a figure that decides by its limits; it is measured in full if an estimate is near."""
    figure = measure()
    if figure is None or not is_quick():
        return figure
    # CREPE tiny is 0.06 nats away by 256 inputs, 0.04 to 0.07 by 64 or 100, 0.08 to 0.11 by 8.
    near = 1 + max(0.5, 16 / sample_count(target, GENERATORS[target.inputs.kind]))
    if not any(limit / near < figure < limit * near for limit in limits):
        return figure
    with weighing():
        return measure()


def _without_statistics(target: Target, obstacle: str) -> AutoChoice:
    """Add impressions to the generators if these fit badly; `obstacle` is why nothing is inverted.

    They double the accuracy of some masks there, and change nothing where a generator fits.
    """
    fit = _settled(lambda: best_generator_fit(target), target, UNTRAINED, LOW_FIT)
    if fit is None:
        return AutoChoice((PROCEDURAL,), obstacle)
    reason = f"{obstacle}; the domain fit of the best generator is {fit:.2f}, limit {LOW_FIT}"
    if not UNTRAINED <= fit < LOW_FIT or not _passes_gradient(target):
        return AutoChoice((PROCEDURAL,), reason)
    return AutoChoice((PROCEDURAL, IMPRESSIONS), reason)


def best_generator_fit(target: Target) -> float | None:
    """Return the domain fit of the generator that fits a classifier best; None for other networks.

    It depends on the network alone, and is measured once per target.
    """
    if target.inputs.kind == "tokens":
        return None
    with torch.no_grad():
        outputs = target.model(target.example())
    if information_of(outputs) is None:
        return None
    table = GENERATORS[target.inputs.kind]
    values = information_of_generators(target, table)
    return domain_fit(max(values.values()), outputs.shape[1], sample_count(target, table))


def information_of_generators(
    target: Target, table: Mapping[str, InputGenerator]
) -> dict[str, float]:
    """Return the mutual information of the generators, best first; see `mutual_information`.

    It depends on the network alone, and is measured once per target.
    """
    count = sample_count(target, table)
    known = _information.setdefault(target, {})
    if count not in known:

        def measure() -> Tensor:
            draws = torch.Generator().manual_seed(_SEED)
            values = mutual_information(target, table, draws, count)
            return torch.tensor([values[name] for name in table], dtype=torch.float64)

        values = _measured(target, "mutual information of generators", list(table), count, measure)
        pairs = zip(table, values.tolist(), strict=True)
        known[count] = dict(sorted(pairs, key=lambda item: -item[1]))
    return known[count]


def mixture_fitter(target: Target) -> MixtureFitter:
    """Return the fitter of generator mixtures for a target with BatchNorm, built once per target.

    Raises:
        InputError: no BatchNorm with running statistics takes part in the forward pass.
    """
    table, count = GENERATORS[target.inputs.kind], _moments_sample(target)
    batch = LARGE_BATCH if is_large(target) else CHUNK
    known = _fitters.setdefault(target, {})
    if count not in known:

        def measure() -> Tensor:
            draws = torch.Generator().manual_seed(_SEED)
            return measure_moments(target, table, draws, count, batch)

        names = list(table)
        moments = _measured(target, "moments of generators", names, count, measure)
        with torch.no_grad(), BatchNormRecorder(target.model) as recorder:
            target.model(target.example())
            statistics = recorder.take()[1].double()
        known[count] = MixtureFitter(names, moments.to(target.device), statistics)
    return known[count]


def _moments_sample(target: Target) -> int:
    """Return how many inputs of each generator the moments are measured on."""
    # A large network has thousands of positions per input and channel. On EfficientNet-Lite0 with
    # random weights, 64 inputs instead of 32 change the divergence by 0.001 and shares by 0.03.
    count = FEWEST if is_large(target) else SAMPLE
    return min(count, sample_count(target, GENERATORS[target.inputs.kind])) if is_quick() else count


def is_large(target: Target) -> bool:
    """Return whether running a network on inputs of every generator takes minutes."""
    return MacCounts.of(target).total >= LARGE_MACS


def _measured(
    target: Target, what: str, names: Sequence[str], count: int, measure: Callable[[], Tensor]
) -> Tensor:
    """Return what is measured on `count` inputs of each generator, from the cache if that pays."""
    if math.prod(target.inputs.shape) < LARGE_INPUT and not is_large(target):
        return measure()
    facts = {
        "what": what,
        "network": repr(target.model),
        "inputs": target.inputs.facts(),
        "device": str(target.device),
        "generators": names,
        "sample": count,
        "seed": _SEED,
    }
    # No warning about an unusable cache: the result is the same without it.
    return cached(cache_key(target.weights_sha256, facts), measure, lambda _: None)


def statistics_divergence(target: Target) -> float | None:
    """Return how far the nearest mixture is from the BatchNorm statistics, if that is known.

    In nats per channel. It is measured where a choice depends on it.
    """
    fitter = _fitters.get(target, {}).get(_moments_sample(target))
    return None if fitter is None else fitter.fit().divergence


def _inversion_obstacle(target: Target) -> str | None:
    """Return why a network cannot be inverted, as a clause; None if it can."""
    if target.inputs.kind == "tokens":
        return "token ids are discrete"
    if not batchnorms(target.model):
        return "it has no BatchNorm"
    try:
        _outputs_with_gradient(target)
    except InputError:
        return "none of its BatchNorms with running statistics takes part in its forward pass"
    return None


def _passes_gradient(target: Target) -> bool:
    with torch.enable_grad():
        outputs = target.model(target.example().requires_grad_())
    return isinstance(outputs, Tensor) and outputs.requires_grad


def _outputs_with_gradient(target: Target) -> Tensor:
    """Return the outputs for one input that requires a gradient; a BatchNorm must take part."""
    example = target.example().requires_grad_()
    with torch.enable_grad(), BatchNormRecorder(target.model) as recorder:
        outputs: Tensor = target.model(example)
        recorder.take()
    return outputs
