"""Inputs that Python callers pass in memory: tensors, arrays, datasets, loaders, batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gaprune.calibration.array_files import INPUT_KEYS, LABEL_KEYS, StoredArrays
from gaprune.config import Settings
from gaprune.errors import InputError, describe
from gaprune.models.target import Target

DATA_ARGUMENTS = ("calibration", "validation")  # settings that take data in place of words
# Keys of a batch that is a mapping: those of files, and those of Hugging Face.
_INPUT_KEYS = (*INPUT_KEYS, "image", "pixel_values", "input_ids", "input_values")
_LABEL_KEYS = (*LABEL_KEYS, "label")
_FORMS = "a tensor, an array, a Dataset, a DataLoader, an iterable of batches, or names"


def name_data(stated: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, object]]:
    """Replace data among the `DATA_ARGUMENTS` by names, which settings can hold.

    Returns:
        The settings; and name → data.
    """
    settings, data = dict(stated), dict[str, object]()
    for argument in DATA_ARGUMENTS:
        value = settings.get(argument)
        if value is None:
            continue
        words: list[str] = []
        for part in value if _has_words(value) else [value]:
            is_word = isinstance(part, (str, Path))
            words.append(str(part) if is_word else f"{type(part).__name__} given as {argument}=")
            if not is_word:
                data[words[-1]] = part
        settings[argument] = tuple(words) if argument == "calibration" else words[0]
    return settings, data


def _has_words(value: object) -> bool:
    """Return whether a value is a list of names, among which there may be data."""
    return isinstance(value, (list, tuple)) and any(isinstance(part, (str, Path)) for part in value)


def with_data(target: Target, data: Mapping[str, object], settings: Settings) -> Target:
    """Return the target with the data that `name_data` named, ready to be read by those names.

    Datasets, loaders and iterables are read as far as the counts in the settings need.

    Raises:
        InputError: something is no data.
    """
    if not data:
        return target
    limit = settings.calibration_count + settings.validation_count
    if "gradient_count" in settings.model_fields_set:
        limit = max(limit, settings.gradient_count + settings.validation_count)
    arrays = {
        name: read_data(name.rpartition(" ")[2].rstrip("="), part, limit)
        for name, part in data.items()
    }
    return replace(
        target, inputs=replace(target.inputs, in_memory={**target.inputs.in_memory, **arrays})
    )


def read_data(
    argument: str, data: object, limit: int | None = None, *, labelled: bool = False
) -> StoredArrays:
    """Read inputs `[N, …]`, and labels `[N]` if `labelled`, in the dtype that they have.

    Args:
        argument: the caller's name for the data.
        data: a tensor or an array; a pair of inputs and labels; a `Dataset`, of which at most
            `limit` entries are read at equal distances (many are sorted by class); a `DataLoader`
            or another iterable of batches, which is read until there are `limit` inputs. A batch or
            an entry is an array, a tuple of inputs and labels, or a mapping such as those of
            Hugging Face.
        limit: the number of inputs that are needed; None reads all. Arrays are always taken whole.
        labelled: whether labels are read; otherwise they may be of any kind.

    Raises:
        InputError: something is no data, or batches do not fit each other.
    """
    if _is_array(data):
        return StoredArrays(_tensor(argument, data))
    if _is_pair(data, labelled=labelled) or isinstance(data, Mapping):
        return _split(argument, data, labelled=labelled)
    if isinstance(data, (str, Path)) or not (isinstance(data, Iterable) or _is_indexed(data)):
        raise InputError(f"{argument}: must be {_FORMS}, got {describe(data)}")
    batches = list(_batches(argument, data, limit, labelled=labelled))
    if not batches:
        raise InputError(f"{argument}: this {type(data).__name__} holds no inputs")
    labels = [batch.labels for batch in batches if batch.labels is not None]
    try:
        inputs = torch.cat([batch.inputs for batch in batches])
        joined = torch.cat(labels) if len(labels) == len(batches) else None
    except (RuntimeError, TypeError) as error:
        shapes = dict.fromkeys(str(list(batch.inputs.shape[1:])) for batch in batches)
        raise InputError(
            f"{argument}: all inputs must have one shape, got {' and '.join([*shapes][:3])}"
        ) from error
    return StoredArrays(inputs, joined)


def _batches(
    argument: str,
    data: Any,  # noqa: ANN401 # see read_data
    limit: int | None,
    *,
    labelled: bool,  # see read_data
) -> Iterator[StoredArrays]:
    if _is_indexed(data):
        count = min(len(data), limit or len(data))
        for number in range(count):
            yield _entry(argument, data[number * len(data) // count], labelled=labelled)
        return
    single = isinstance(data, torch.utils.data.IterableDataset)
    left = limit
    for batch in data:
        is_entry = single or _has_one_label(batch)
        arrays = (_entry if is_entry else _split)(argument, batch, labelled=labelled)
        yield arrays
        if left is not None:
            left -= len(arrays.inputs)
            if left <= 0:
                return


def _entry(argument: str, entry: object, *, labelled: bool) -> StoredArrays:
    """Return an entry of a dataset as a batch of one."""
    inputs, labels = _split(argument, entry, labelled=labelled)
    return StoredArrays(inputs[None], None if labels is None else labels[None])


def _has_one_label(batch: object) -> bool:
    """Return whether what an iterable holds is one input and its label, not a batch of them."""
    if isinstance(batch, Mapping):
        labels: Any = next((batch[key] for key in _LABEL_KEYS if key in batch), None)
    else:
        labels = batch[1] if isinstance(batch, (list, tuple)) and batch[1:] else None
    return isinstance(labels, Number) or (_is_array(labels) and np.ndim(labels) == 0)


def _split(argument: str, batch: object, *, labelled: bool) -> StoredArrays:
    """Return inputs and labels of a batch; what else it holds is left out."""
    if isinstance(batch, Mapping):
        keys = [key for key in _INPUT_KEYS if key in batch]
        if not keys:
            names = ", ".join(map(str, batch))
            raise InputError(
                f"{argument}: a batch must hold its inputs under one of {', '.join(_INPUT_KEYS)}; "
                f"got {names or 'no keys'}"
            )
        label_keys = [key for key in _LABEL_KEYS if key in batch]
        batch = (batch[keys[0]], batch[label_keys[0]] if label_keys else None)
    elif not isinstance(batch, (list, tuple)):
        batch = (batch, None)
    if not batch:
        raise InputError(f"{argument}: a batch is empty")
    labels = batch[1] if labelled and batch[1:] else None
    return StoredArrays(
        _tensor(argument, batch[0]), None if labels is None else _tensor("labels", labels)
    )


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor) or hasattr(value, "__array__")


def _is_indexed(value: object) -> bool:
    """Return whether a value has a length and entries by number, as a map-style `Dataset`."""
    has_entries = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    return has_entries and not isinstance(value, (list, tuple))


def _is_pair(value: object, *, labelled: bool) -> bool:
    """Return whether a value is `(inputs, labels)`, not a list of two batches."""
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not _is_array(value[0]):
        return False
    if labelled:  # two arrays without labels would be no batches either
        return True
    inputs, labels = value
    if isinstance(labels, list):
        return all(isinstance(label, Number) for label in labels)
    return _is_array(labels) and np.ndim(inputs) > 1 and np.ndim(labels) == 1


def _tensor(argument: str, value: object) -> Tensor:
    """Return an array, an image or a list of numbers as a tensor on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise InputError(f"{argument}: must hold numbers, got {describe(value)}") from error
