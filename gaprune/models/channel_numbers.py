"""Numbers of modules that count channels, such as the width of the parts of Res2Net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from gaprune.models.channel_labels import ChannelLabels, stripped


class ChannelNumbers:
    """Numbers that the module whose forward pass runs stores, and the channels that they count.

    Attributes:
        names: of the numbers, as `module.attribute`.
    """

    def __init__(
        self,
        model: nn.Module,
        labels: ChannelLabels,
        attributes: dict[str, Tensor],
        path: Sequence[str],
        *,
        used: bool,
    ) -> None:
        """Attach numbers to channels; `path` ends with the module that runs.

        Args:
            model: the network.
            labels: the sets of coupled channels.
            attributes: name → label of each channel that a number counts; it grows.
            path: names of the modules that run.
            used: whether any number counts channels; a number may only happen to equal one.
        """
        self.names: set[str] = set()
        self._model, self._labels = model, labels
        self._attributes, self._path, self._used = attributes, path, used

    def count_unequal(
        self, name: str, labels: Tensor, arguments: Mapping[str, Any], dim: int
    ) -> bool:
        """Count the channels of unequal parts; return whether the module stores all sizes."""
        size = labels.shape[dim]
        if name == "slice" and arguments["step"] == 1:
            start, stop, _ = slice(arguments["start"], arguments["end"]).indices(size)
            ends = [end for end in (start, stop) if 0 < end < size]
            return all(self.count(end, labels.narrow(dim, 0, end), dim) for end in ends)
        if name != "split_with_sizes":
            return False
        sizes = [int(part) for part in arguments["split_sizes"]]
        parts = labels.split(sizes, dim)
        for part, other in ((a, b) for a in parts for b in parts if a.shape == b.shape):
            # the same number may count both
            self._labels.join_all(part, other, name, in_layer=True)
        return all(self.count(size, part, dim) for size, part in zip(sizes, parts, strict=True))

    def count(self, number: int, labels: Tensor, dim: int) -> bool:
        """Let numbers of the calling module that equal a count of channels count these channels.

        Return whether it has one.
        """
        names = [key for key, value in self._numbers() if type(value) is int and value == number]
        return bool(names) and all(self._attach(name, labels, dim) for name in names)

    def count_list(self, labels: Tensor, sizes: Sequence[int], dim: int) -> bool:
        """Let a list of the calling module count the parts; return whether it has one."""
        names = [
            key
            for key, value in self._numbers()
            if type(value) in (list, tuple) and {type(part) for part in value} == {int}
            if list(value) == list(sizes)
        ]
        parts = list(enumerate(labels.split(list(sizes), dim)))
        return bool(names) and all(
            self._attach(f"{name}[{index}]", part, dim) for name in names for index, part in parts
        )

    def _numbers(self) -> list[tuple[str, Any]]:
        """Return name → value of the attributes of the module whose forward pass runs."""
        if not self._used or not self._path:
            return []
        path = self._path[-1]
        attributes = vars(self._model.get_submodule(path))
        return [(f"{path}.{key}".lstrip("."), value) for key, value in attributes.items()]

    def _attach(self, name: str, labels: Tensor, dim: int) -> bool:
        """Let a number count channels along a dimension, unless other dimensions differ."""
        matrix = self._labels.roots(stripped(labels, but=dim)).movedim(dim, 0).flatten(1)
        if bool((matrix != matrix[:, :1]).any()):
            return False
        counted = matrix[:, 0]
        self._labels.join_all(
            self._attributes.setdefault(name, counted), counted, f"the number {name}"
        )
        self.names.add(name)
        return True
