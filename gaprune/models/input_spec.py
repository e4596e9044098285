"""What a network takes as input: shape, kind, value range and token ids of one input."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gaprune.errors import InputError, describe, unknown_name
from gaprune.io.bounded_reading import memory_bytes

KINDS = {
    "image": "float `[channels, height, width]`",
    "signal": "float `[channels, length]` or `[length]`",
    "vector": "float `[features]`, no order between neighbours",
    "tokens": "int64 `[length]`, ids below `vocabulary`",
}
# Permitted numbers of axes; a vector may have any.
_AXES: dict[str, tuple[int, ...]] = {"image": (3,), "signal": (1, 2), "tokens": (1,)}
SMALLEST_PICTURE = 8  # pixels along a side
# The kind suggested by a shape alone. A network that begins with a linear layer does not tell:
# it may flatten images first.
_KIND_BY_AXES = {1: "vector", 2: "signal", 3: "image"}


@dataclass(frozen=True, eq=False)
class TokenIds:
    """Ordinary token ids, most frequent first; the ids that begin and end a text.

    `embedding` is the network's own module, not a copy. `words` are the ids of whole words and
    punctuation marks.
    """

    by_frequency: tuple[int, ...] = field(default=(), repr=False)
    start: int | None = None
    end: int | None = None
    embedding: Any = field(default=None, repr=False)
    words: Mapping[str, int] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class InputSpec:
    """One input of a network, without the batch axis.

    Attributes:
        shape: for example (1, 28, 28).
        kind: a key of `KINDS`.
        low, high: the range of raw values, before normalisation.
        mean, std: normalisation of raw values, one number or one per channel.
        vocabulary, token_ids: number of token ids, and details if known (kind `tokens` only).
        assumed: True if the range is not known and 0 to 1 is assumed.
        in_memory: name → inputs and labels that a Python caller gave, as they were given.
        examples: data level and hash of the rows of a network with several inputs, whose inputs
            are row numbers (`gaprune.models.arguments`); empty for others.
        text: turns texts into token ids (`sources.text_encoder.TextEncoder`), or None.
        padding: the id that fills up short texts and that the network leaves out; None if there is
            none, or if texts are packed, as for a causal language model.

    Raises:
        InputError: a value breaks one of these rules.
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
    in_memory: Mapping[str, tuple[Tensor, Tensor | None]] = field(
        default_factory=dict, compare=False, repr=False
    )
    examples: str = field(default="", compare=False, repr=False)
    text: Any = field(default=None, compare=False, repr=False)
    padding: int | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("input kind", self.kind, KINDS)
        if not self.shape or any(not isinstance(n, int) or n < 1 for n in self.shape):
            raise InputError(
                "input shape: must be positive whole sizes without the batch axis, such as "
                f"1,28,28; got {self.shape}"
            )
        self.check_memory(2, "input shape")  # a network is tried on two inputs
        # only images and signals have a channel axis
        channels = self.shape[0] if self.kind in ("image", "signal") and len(self.shape) > 1 else 1
        values = {"range": (self.low, self.high), "mean": self.mean, "std": self.std}
        for name, numbers in values.items():
            if not all(map(math.isfinite, numbers)):
                raise InputError(f"{name}: must be finite numbers, got {numbers}")
            if name != "range" and len(numbers) not in (1, channels):
                raise InputError(
                    f"{name}: must have 1 value or one per channel ({channels}), got {len(numbers)}"
                )
        if not self.low < self.high:
            raise InputError(
                f"range: the low end must be below the high end, got {self.low} to {self.high}"
            )
        if min(self.std) <= 0:
            raise InputError(f"std: must be above 0, got {self.std}")
        if self.kind == "tokens" and self.vocabulary < 2:
            raise InputError(f"vocabulary: token inputs need at least 2 ids, got {self.vocabulary}")

    def check_memory(self, count: int, argument: str) -> None:
        """Raise `InputError` about an argument if so many inputs exceed this machine's memory."""
        size = 4 * count * math.prod(self.shape)
        if size > memory_bytes():
            raise InputError(
                f"{argument}: {count:,} inputs of shape {self.shape} take {size:,} bytes, and this "
                f"machine has {memory_bytes():,}; choose a smaller shape or fewer inputs"
            )

    def facts(self) -> dict[str, Any]:
        """Return as plain data everything that generated calibration inputs depend on."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.compare}
        if self.examples:
            plain["examples"] = self.examples
        ids = self.token_ids
        if ids is None or not ids.by_frequency:
            return plain
        known = ",".join([*map(str, ids.by_frequency), *ids.words])
        hashed = hashlib.sha256(known.encode()).hexdigest()
        facts = {"by_frequency": hashed, "start": ids.start, "end": ids.end}
        return {**plain, "token_ids": facts | ({"padding": self.padding} if ids.words else {})}


@dataclass(frozen=True)
class InputOptions:
    """What the user states about one input. Anything left out is inferred or assumed.

    Attributes:
        shape: sizes without the batch axis, such as (1, 28, 28).
        range: lowest and highest value that the network is fed. Not together with `mean`, `std`.
        mean, std: normalisation of raw values in 0 to 1, one number or one per channel.
        kind: image, signal, vector or tokens.
        vocabulary: number of token ids; implies kind `tokens`.
    """

    shape: tuple[int, ...] | None = None
    range: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    kind: str | None = None
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        for name in ("shape", "range", "mean", "std"):
            value = getattr(self, name)
            if isinstance(value, (int, float)):
                object.__setattr__(self, name, (value,))
            elif value is not None and not (
                isinstance(value, (tuple, list))
                and all(isinstance(number, (int, float)) for number in value)
            ):
                raise InputError(f"inputs: {name} must be numbers, got {describe(value)}")


class _FirstLayer(NamedTuple):
    """What the first layer reveals: kind, shape, vocabulary, and a shape to suggest in errors."""

    kind: str | None = None
    shape: tuple[int, ...] | None = None
    vocabulary: int = 0
    example: str = "1,28,28"


# Type of a network's first layer → the kind of its input, if that is clear, and a shape to suggest.
_FIRST_LAYERS: dict[tuple[type[nn.Module], ...], tuple[str | None, str]] = {
    (nn.Embedding, nn.EmbeddingBag): ("tokens", "128"),
    (nn.Conv2d, nn.ConvTranspose2d): ("image", "{layer.in_channels},224,224"),
    (nn.Conv1d, nn.ConvTranspose1d): ("signal", "{layer.in_channels},1024"),
    (nn.Linear,): (None, "{layer.in_features}"),
    (nn.Conv3d, nn.ConvTranspose3d): (None, "{layer.in_channels},16,64,64"),
    (nn.RNNBase,): (None, "128,{layer.input_size}"),
    (nn.MultiheadAttention,): (None, "128,{layer.embed_dim}"),
}


def resolve_inputs(
    model: nn.Module, options: InputOptions, default: InputSpec | None = None
) -> InputSpec:
    """Return the full description of one input: as stated, else from `default`, else inferred.

    The kind is inferred from the first layer in order of registration (see `_FIRST_LAYERS`), behind
    a linear layer from the stated shape. If neither range nor normalisation is known, values from 0
    to 1 are assumed and the result has `assumed=True`. For token networks the result holds the
    network's embedding module. The network is not run.

    Raises:
        InputError: options that contradict each other or break a rule of `InputSpec`, or a shape,
            kind or vocabulary that cannot be inferred.
    """
    if options.vocabulary is not None and options.kind not in (None, "tokens"):
        raise InputError(f"vocabulary: is for token inputs only, got kind {options.kind!r}")
    first = _first_layer(model)
    shape = options.shape
    if shape is None:
        shape = default.shape if default else first.shape
    if shape is None:
        raise InputError(
            "input shape: cannot be inferred from the network; pass the shape of one input without "
            f"the batch axis, such as --input-shape={first.example}"
        )
    # stated first, then known, then inferred from the first layer, then from the shape
    kind = options.kind or ("tokens" if options.vocabulary is not None else None)
    kind = kind or (default.kind if default else first.kind or _KIND_BY_AXES.get(len(shape)))
    if kind is None:
        raise InputError(
            f"input kind: cannot be inferred for shape {','.join(map(str, shape))}; "
            f"pass --input-kind, one of {', '.join(KINDS)}"
        )
    if len(shape) not in _AXES.get(kind, (len(shape),)):
        raise InputError(
            f"input shape: kind {kind!r} is {KINDS[kind]}, got {','.join(map(str, shape))}; "
            "leave the batch axis out, or state another --input-kind"
        )
    values = _value_range(options, default)  # also for tokens: contradictions are errors there too
    if kind != "tokens":
        return InputSpec(shape=tuple(shape), kind=kind, **values)
    vocabulary = options.vocabulary
    if vocabulary is None:
        vocabulary = (default.vocabulary if default else 0) or first.vocabulary
    token_ids = _token_ids(model, vocabulary, default)
    return InputSpec(
        shape=tuple(shape),
        kind=kind,
        vocabulary=vocabulary,
        token_ids=token_ids,
        text=default and default.text,
        padding=None if default is None else default.padding,
    )


def vocabulary_embeddings(model: nn.Module, vocabulary: int) -> Iterator[nn.Embedding]:
    """Yield the embeddings with one row per token id, in order of registration."""
    for layer in model.modules():
        if isinstance(layer, nn.Embedding) and layer.num_embeddings == vocabulary:
            yield layer


def sample_inputs(spec: InputSpec, count: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Draw inputs `[count, *spec.shape]`, on the CPU: uniform in the range, then normalised.

    Token ids are int64 and include the highest one.
    """
    generator = torch.Generator().manual_seed(seed)
    size = (count, *spec.shape)
    if spec.kind == "tokens":
        ids = torch.randint(spec.vocabulary, size, generator=generator)
        ids.view(-1)[0] = spec.vocabulary - 1  # an id beyond the embedding raises
        return ids
    raw = torch.rand(size, generator=generator) * (spec.high - spec.low) + spec.low
    # [channels, 1, …] broadcasts over the other axes
    per_channel = (-1, *[1] * (len(spec.shape) - 1))
    mean, std = (torch.tensor(values).view(per_channel) for values in (spec.mean, spec.std))
    return ((raw - mean) / std).to(dtype)


def takes_flat_pictures(model: nn.Module, spec: InputSpec) -> bool:
    """Return whether a network takes the pixels of a picture as one vector, without flattening.

    Its first layer is linear with one input per pixel, and it has no layer that flattens.
    """
    return (
        spec.kind == "image"
        and _first_layer(model).shape == (math.prod(spec.shape),)
        and not any(isinstance(layer, nn.Flatten | nn.Unflatten) for layer in model.modules())
        and not _accepts(model, spec)
    )


def _accepts(model: nn.Module, spec: InputSpec) -> bool:
    weight = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    try:
        with torch.no_grad():
            model(sample_inputs(spec, 1, weight.dtype).to(weight.device))
    except Exception:  # noqa: BLE001 - user code and torch raise any type for a wrong shape
        return False
    return True


def picture_shapes(spec: InputSpec) -> list[tuple[int, int, int]]:
    """Return the shapes of square pictures, grey or of three colours, whose pixels a vector holds.

    Sides below `SMALLEST_PICTURE` are left out: such a vector is hardly a picture.
    """
    if spec.kind != "vector" or len(spec.shape) != 1:
        return []
    sides = ((channels, math.isqrt(spec.shape[0] // channels)) for channels in (1, 3))
    return [
        (channels, side, side)
        for channels, side in sides
        if channels * side * side == spec.shape[0] and side >= SMALLEST_PICTURE
    ]


def _first_layer(model: nn.Module) -> _FirstLayer:
    for layer in model.modules():
        for types, (kind, example) in _FIRST_LAYERS.items():
            if isinstance(layer, types):
                shape = (layer.in_features,) if isinstance(layer, nn.Linear) else None
                vocabulary = getattr(layer, "num_embeddings", 0)
                return _FirstLayer(kind, shape, vocabulary, example.format(layer=layer))
    return _FirstLayer()


def _value_range(options: InputOptions, default: InputSpec | None) -> dict[str, Any]:
    """Return range and normalisation as keyword arguments of `InputSpec`."""
    normalised = options.mean is not None or options.std is not None
    if options.range is not None:
        if normalised:
            raise InputError(
                "range: cannot be combined with mean and std; give the range that the network is "
                "fed, or the normalisation of raw values in 0 to 1"
            )
        if len(options.range) != 2:
            raise InputError(f"range: must be two numbers, low and high, got {options.range}")
        return {"low": options.range[0], "high": options.range[1]}
    if normalised:
        # not `or`: an empty tuple is an error that InputSpec reports
        mean = (0.0,) if options.mean is None else options.mean
        std = (1.0,) if options.std is None else options.std
        return {"mean": tuple(mean), "std": tuple(std)}
    if default is not None:
        names = ("low", "high", "mean", "std", "assumed")
        return {name: getattr(default, name) for name in names}
    return {"assumed": True}


def _token_ids(model: nn.Module, vocabulary: int, default: InputSpec | None) -> TokenIds | None:
    """Return `default`'s token ids with the embedding, unless they belong to another vocabulary."""
    embedding = next(vocabulary_embeddings(model, vocabulary), None)
    known = default.token_ids if default and default.vocabulary == vocabulary else None
    return known if embedding is None else replace(known or TokenIds(), embedding=embedding)
