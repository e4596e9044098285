"""What a network takes as input: shape, kind, value range and token ids of one input."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.errors import InputError, unknown_name

KINDS = {
    "image": "float `[channels, height, width]`",
    "signal": "float `[channels, length]` or `[length]`",
    "vector": "float `[features]`, no order between neighbours",
    "tokens": "int64 `[length]`, ids below `vocabulary`",
}


@dataclass(frozen=True, eq=False)
class TokenIds:
    """The ids of a token network.

    Attributes:
        by_frequency: ids of ordinary tokens, most frequent first; empty where nobody knows.
        start, end: ids that a text begins and ends with, or None.
        embedding: the network's own `nn.Embedding` of the ids, or None. It is the module and no copy,
            so that a pickle of network and ids holds it once.
    """

    by_frequency: tuple[int, ...] = field(default=(), repr=False)
    start: int | None = None
    end: int | None = None
    embedding: Any = field(default=None, repr=False)

    def facts(self) -> dict[str, Any]:
        """Return as plain data what calibration inputs depend on beside the network; empty: nothing."""
        if not self.by_frequency:
            return {}
        ids = hashlib.sha256(",".join(map(str, self.by_frequency)).encode()).hexdigest()
        return {"by_frequency": ids, "start": self.start, "end": self.end}


@dataclass(frozen=True)
class InputSpec:
    """One input of the network, without the batch axis.

    Attributes:
        shape: for example (1, 28, 28).
        kind: a key of `KINDS`.
        low, high: the range of raw values, before normalisation.
        mean, std: normalisation of the raw values, one number or one per channel.
        vocabulary: number of token ids (kind `tokens` only).
        assumed: True where nobody stated the range and 0 to 1 was taken.
        token_ids: what is known about the ids (kind `tokens` only), or None.
    """

    shape: tuple[int, ...]
    kind: str
    low: float = 0.0
    high: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    vocabulary: int = 0
    assumed: bool = False
    token_ids: TokenIds | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("input kind", self.kind, KINDS)
        if not self.shape or any(size < 1 for size in self.shape):
            raise InputError(
                "input shape: must be positive sizes without the batch axis, such as 1,28,28; "
                f"got {self.shape}"
            )
        for label, values in (
            ("range", (self.low, self.high)),
            ("mean", self.mean),
            ("std", self.std),
        ):
            if not all(map(math.isfinite, values)):
                raise InputError(f"{label}: must be finite numbers, got {values}")
        if not self.low < self.high:
            raise InputError(
                f"range: the low end must be below the high end, got {self.low} to {self.high}"
            )
        channels = self.shape[0] if self.kind in ("image", "signal") and len(self.shape) > 1 else 1
        for label, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise InputError(
                    f"{label}: must have 1 value or one per channel ({channels}), got {len(values)}"
                )
        if min(self.std) <= 0:
            raise InputError(f"std: must be above 0, got {self.std}")
        if self.kind == "tokens" and self.vocabulary < 2:
            raise InputError(f"vocabulary: token inputs need at least 2 ids, got {self.vocabulary}")

    def facts(self) -> dict[str, Any]:
        """Return as plain data everything that calibration inputs of this form depend on."""
        plain = {
            one.name: getattr(self, one.name) for one in fields(self) if one.name != "token_ids"
        }
        known = {} if self.token_ids is None else self.token_ids.facts()
        return {**plain, "token_ids": known} if known else plain


# How many axes one input of a kind has; a vector may come in any arrangement.
_AXES: dict[str, tuple[int, ...]] = {"image": (3,), "signal": (1, 2), "tokens": (1,)}
# What a shape suggests where the layers don't say: a linear layer may follow a flattened image.
_KIND_BY_AXES = {1: "vector", 2: "signal", 3: "image"}


@dataclass(frozen=True)
class InputOptions:
    """What the user states about one input; everything left out is inferred or assumed.

    Attributes:
        shape: sizes without the batch axis, such as (1, 28, 28).
        range: lowest and highest value that the network is fed. Not together with `mean`, `std`.
        mean, std: normalisation, per channel or one for all, of raw values in 0 to 1.
        kind: a key of `gaprune.models.input_spec.KINDS`.
        vocabulary: number of token ids; implies kind `tokens`.
    """

    shape: tuple[int, ...] | None = None
    range: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    kind: str | None = None
    vocabulary: int | None = None


@dataclass(frozen=True)
class _Guess:
    """What the first layer tells: the kind, the shape if it fixes one, ids, an example shape."""

    kind: str | None = None
    shape: tuple[int, ...] | None = None
    vocabulary: int = 0
    example: str = "1,28,28"


# Layer type → what a network that begins with it takes.
_FIRST_LAYERS: dict[tuple[type[nn.Module], ...], Callable[[Any], _Guess]] = {
    (nn.Embedding, nn.EmbeddingBag): lambda layer: _Guess(
        "tokens", vocabulary=layer.num_embeddings, example="128"
    ),
    (nn.Conv2d, nn.ConvTranspose2d): lambda layer: _Guess(
        "image", example=f"{layer.in_channels},224,224"
    ),
    (nn.Conv1d, nn.ConvTranspose1d): lambda layer: _Guess(
        "signal", example=f"{layer.in_channels},1024"
    ),
    (nn.Linear,): lambda layer: _Guess(shape=(layer.in_features,)),
    (nn.Conv3d, nn.ConvTranspose3d): lambda layer: _Guess(example=f"{layer.in_channels},16,64,64"),
    (nn.RNNBase,): lambda layer: _Guess(example=f"128,{layer.input_size}"),
    (nn.MultiheadAttention,): lambda layer: _Guess(example=f"128,{layer.embed_dim}"),
}


def resolve_inputs(
    model: nn.Module, options: InputOptions, default: InputSpec | None = None
) -> InputSpec:
    """Return the full description of one input: what is stated, then `default`, then inferred.

    The kind is inferred from the first layer in order of registration: an embedding takes tokens
    of its vocabulary, a 2-D convolution an image, a 1-D convolution a signal, a linear layer a
    vector of `in_features`, or what a stated shape of one, two or three axes suggests (vector,
    signal, image). Where neither a range nor a normalisation is known, values from 0 to 1 are
    taken and the result has `assumed=True`. Of token networks the result holds the embedding, the
    layer itself.

    Args:
        model: the network; it is read, not run.
        options: what the user states.
        default: what is known already, for a zoo network.

    Raises:
        InputError: options that contradict each other or break a rule, or a shape, kind or
            vocabulary that cannot be inferred.
    """
    _check_options(options)
    guess = _guess(model)
    shape = options.shape or (default.shape if default else guess.shape)
    if shape is None:
        raise InputError(
            "input shape: cannot be inferred from the network; pass the shape of one input without "
            f"the batch axis, such as --input-shape {guess.example}"
        )
    kind = _kind(options, default, guess, shape)
    if len(shape) not in _AXES.get(kind, (len(shape),)):
        raise InputError(
            f"input shape: kind {kind!r} is {KINDS[kind]}, got {_joined(shape)}; "
            "leave the batch axis out, or state another --input-kind"
        )
    if kind != "tokens":
        return InputSpec(shape=tuple(shape), kind=kind, **_values(options, default))
    vocabulary = options.vocabulary or (default.vocabulary if default else 0) or guess.vocabulary
    spec = InputSpec(shape=tuple(shape), kind=kind, vocabulary=vocabulary)
    return replace(spec, token_ids=_words(model, vocabulary, default))


def vocabulary_embeddings(model: nn.Module, vocabulary: int) -> Iterator[nn.Embedding]:
    """Yield the embeddings of a whole vocabulary, in order of registration."""
    for layer in model.modules():
        if isinstance(layer, nn.Embedding) and layer.num_embeddings == vocabulary:
            yield layer


def sample_inputs(spec: InputSpec, count: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Draw `count` random inputs as the network takes them: uniform in the range, then normalised.

    Returns:
        `[count, *spec.shape]` on the CPU, of `dtype`; for tokens int64 ids, the highest one among
        them, so that a vocabulary larger than the embedding is noticed.
    """
    generator = torch.Generator().manual_seed(seed)
    size = (count, *spec.shape)
    if spec.kind == "tokens":
        ids = torch.randint(spec.vocabulary, size, generator=generator)
        ids.view(-1)[0] = spec.vocabulary - 1
        return ids
    raw = torch.rand(size, generator=generator) * (spec.high - spec.low) + spec.low
    per_channel = (-1, *[1] * (len(spec.shape) - 1))
    mean, std = (torch.tensor(values).view(per_channel) for values in (spec.mean, spec.std))
    return ((raw - mean) / std).to(dtype)


def _check_options(options: InputOptions) -> None:
    if options.kind is not None and options.kind not in KINDS:
        raise unknown_name("input kind", options.kind, KINDS)
    if options.shape is not None and not (
        options.shape and all(isinstance(size, int) and size > 0 for size in options.shape)
    ):
        raise InputError(
            "input shape: must be whole positive sizes without the batch axis, such as 1,28,28; "
            f"got {options.shape}"
        )
    if options.range is not None and (options.mean is not None or options.std is not None):
        raise InputError(
            "range: cannot be combined with mean and std; give the range that the network is fed, "
            "or the normalisation of raw values in 0 to 1"
        )
    if options.range is not None and len(options.range) != 2:
        raise InputError(f"range: must be two numbers, low and high, got {options.range}")
    for label in ("range", "mean", "std"):
        values = getattr(options, label)
        if values is not None and not all(map(math.isfinite, values)):
            raise InputError(f"{label}: must be finite numbers, got {values}")
    if options.vocabulary is not None:
        if options.kind not in (None, "tokens"):
            raise InputError(f"vocabulary: is for token inputs only, got kind {options.kind!r}")
        if options.vocabulary < 2:
            raise InputError(f"vocabulary: must be at least 2 ids, got {options.vocabulary}")


def _guess(model: nn.Module) -> _Guess:
    for module in model.modules():
        for layers, read in _FIRST_LAYERS.items():
            if isinstance(module, layers):
                return read(module)
    return _Guess()


def _kind(
    options: InputOptions, default: InputSpec | None, guess: _Guess, shape: tuple[int, ...]
) -> str:
    stated = options.kind or ("tokens" if options.vocabulary else None)
    kind = stated or (default.kind if default else guess.kind or _KIND_BY_AXES.get(len(shape)))
    if kind is None:
        raise InputError(
            f"input kind: cannot be inferred for shape {_joined(shape)}; "
            f"pass --input-kind, one of {', '.join(KINDS)}"
        )
    return kind


def _values(options: InputOptions, default: InputSpec | None) -> dict[str, Any]:
    """Return range and normalisation as keyword arguments of `InputSpec`."""
    if options.range is not None:
        low, high = options.range
        return {"low": low, "high": high}
    if options.mean is not None or options.std is not None:
        return {"mean": tuple(options.mean or (0.0,)), "std": tuple(options.std or (1.0,))}
    if default is not None:
        fields = ("low", "high", "mean", "std", "assumed")
        return {field: getattr(default, field) for field in fields}
    return {"assumed": True}


def _words(model: nn.Module, vocabulary: int, default: InputSpec | None) -> TokenIds | None:
    """Return what is known about the ids; what was said of another vocabulary is not."""
    table = next(vocabulary_embeddings(model, vocabulary), None)
    known = default.token_ids if default and default.vocabulary == vocabulary else None
    if table is None:
        return known
    return replace(known or TokenIds(), embedding=table)


def _joined(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))
