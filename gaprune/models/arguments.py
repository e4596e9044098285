"""Networks with several inputs: every input is the number of a row in a table of examples."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from gaprune.choices import FEW_EXAMPLES
from gaprune.errors import InputError, describe
from gaprune.io.tensor_files import read_npz
from gaprune.models.input_spec import InputSpec

EXAMPLES = "example inputs"  # name of the rows among the data in memory
GENERATED = 512  # rows that are generated
_MASK_VALUES = (0, 1)


class ArgumentRows:
    """Passes rows of arrays to a network that is called with their numbers, as a pre-hook.

    Args:
        positional, named: arguments of forward, `[N, …]` each.

    Raises:
        InputError: no array, different numbers of rows, or values that are no finite numbers.
    """

    def __init__(self, positional: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
        self.positional, self.named = positional, dict(named)
        arrays: list[tuple[object, Tensor]] = [*enumerate(positional), *named.items()]
        counts = {array.shape[0] if array.ndim else 0 for _, array in arrays}
        if len(counts) != 1 or 0 in counts:
            shapes = ", ".join(f"{name}: {list(array.shape)}" for name, array in arrays)
            raise InputError(
                "example_inputs: the first axis of every array must count the same examples, at "
                f"least one; got {shapes or 'no arrays'}"
            )
        for name, array in arrays:
            if array.is_complex() or not bool(torch.isfinite(array).all()):
                raise InputError(f"example_inputs: {name!r} must hold finite real numbers")
        self.count = counts.pop()
        self._placed: dict[torch.device, list[Tensor]] = {}

    @classmethod
    def of(cls, examples: object) -> Self:
        """Take a path of a .npz file, a mapping of names to arrays, a sequence, or one array."""
        if isinstance(examples, (str, Path)):
            examples = _read(Path(examples))
        if isinstance(examples, Mapping):
            return cls((), {str(name): _array(name, a) for name, a in examples.items()})
        parts = examples if isinstance(examples, (tuple, list)) else (examples,)
        return cls(tuple(_array(number, part) for number, part in enumerate(parts)), {})

    def __deepcopy__(self, _memo: object) -> Self:
        """Share the arrays among copies of a network: nobody changes them."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_placed": {}}

    def __call__(
        self, model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Replace row numbers `[n, 1]` by the arguments; floating ones get the network's dtype."""
        numbers = args[0][:, 0]
        arrays = self._placed.setdefault(
            numbers.device,
            [array.to(numbers.device) for array in (*self.positional, *self.named.values())],
        )
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        rows = [array[numbers] for array in arrays]
        rows = [row.to(dtype) if row.is_floating_point() else row for row in rows]
        count = len(self.positional)
        return tuple(rows[:count]), dict(zip(self.named, rows[count:], strict=True)) | kwargs

    @property
    def facts(self) -> str:
        """A hash of the arrays and the names of the arguments."""
        hashed = hashlib.sha256(",".join(self.named).encode())
        for array in (*self.positional, *self.named.values()):
            hashed.update(f"{array.dtype}{list(array.shape)}".encode())
            hashed.update(array.contiguous().numpy().tobytes())
        return hashed.hexdigest()

    def generated(self) -> ArgumentRows:
        """Return `GENERATED` rows around these.

        Integers are uniform between the smallest and the largest one of their array; other numbers
        are normal with mean and standard deviation of theirs; masks (booleans, or 0 and 1) repeat.
        """
        generator = torch.Generator().manual_seed(0)
        positional = tuple(_similar(array, generator) for array in self.positional)
        return ArgumentRows(
            positional, {name: _similar(array, generator) for name, array in self.named.items()}
        )


def take_arguments(model: nn.Module, examples: object) -> InputSpec:
    """Make a network accept numbers of examples in place of its arguments, in place.

    Args:
        model: a network.
        examples: see `ArgumentRows.of`. Fewer than `FEW_EXAMPLES` stand for generated ones.

    Returns:
        The description of such a number.

    Raises:
        InputError: something is no array, or the network has no such arguments.
    """
    rows = ArgumentRows.of(examples)
    _check_arguments(model, rows)
    few = rows.count < FEW_EXAMPLES
    if few:
        rows = rows.generated()
    # first: other hooks complete the arguments
    model.register_forward_pre_hook(rows, prepend=True, with_kwargs=True)
    numbers = torch.arange(rows.count)[:, None]
    level = "proxy" if few else "unlabelled"
    return InputSpec(
        (1,),
        "tokens",
        vocabulary=rows.count,
        in_memory={EXAMPLES: (numbers, None)},
        examples=f"{level}:{rows.facts}",
    )


def _check_arguments(model: nn.Module, rows: ArgumentRows) -> None:
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # compiled code has no signature
        return
    try:
        signature.bind(*rows.positional, **rows.named)
    except TypeError as error:
        raise InputError(
            f"example_inputs: forward of {type(model).__name__} does not take them ({error}); its "
            f"arguments are {', '.join(signature.parameters)}"
        ) from error


def _similar(array: Tensor, generator: torch.Generator) -> Tensor:
    size = (GENERATED, *array.shape[1:])
    repeated = array[torch.arange(GENERATED) % len(array)]
    if array.is_floating_point():
        deviation, mean = torch.std_mean(array.double(), correction=0)
        return (torch.randn(size, generator=generator) * deviation + mean).to(array.dtype)
    if array.dtype == torch.bool or bool(torch.isin(array, torch.tensor(_MASK_VALUES)).all()):
        return repeated
    return torch.randint(int(array.min()), int(array.max()) + 1, size, generator=generator)


def _read(path: Path) -> dict[str, Any]:
    try:
        names = tuple(read_npz(path, ()))
        return dict(read_npz(path, names))
    except OSError as error:
        raise InputError(f"inputs: cannot read {path} ({error.strerror or error})") from error
    except Exception as error:  # damaged bytes make decoders raise almost anything
        raise InputError(
            f"inputs: {path} must be a .npz file with one array per argument of forward ({error})"
        ) from error


def _array(name: object, value: object) -> Tensor:
    try:
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"example_inputs: {name!r} must hold numbers, got {describe(value)}"
        ) from error
    tensor = tensor.detach().cpu()
    return tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.long()
