"""A network as it was loaded, and the dense network that criteria score and masks prune."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from gaprune.masks.supermask import Layout
from gaprune.models.input_spec import InputSpec

T = TypeVar("T")


class LoadedNetwork(NamedTuple):
    """A trained network from the zoo, a factory, timm or transformers, before it is checked.

    Its parameters have the names of its checkpoint. For origin and zoo see `Target`.
    """

    model: nn.Module
    inputs: InputSpec | None
    origin: str
    zoo: str | None = None


@dataclass(frozen=True, eq=False)
class DenseNetwork:
    """A trained network before pruning. Nobody may change it.

    Attributes:
        model: in evaluation mode, its parameters frozen (`requires_grad` is False).
        weights: qualified parameter name → dense weight, for the prunable parameters only. They
            are detached and share the model's memory.
        layout: the position of each weight in a flat vector `[total]`.
        inputs: shape, kind and value range of one input.
    """

    model: nn.Module = field(repr=False)
    weights: Mapping[str, Tensor] = field(repr=False)
    layout: Layout = field(repr=False)
    inputs: InputSpec
    _memo: dict[str, tuple[weakref.ref[Tensor], int, Any]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memo out of pickles and copies: recomputing is cheaper than sending it."""
        return {**self.__dict__, "_memo": {}}

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(iter(self.weights.values())).device

    def layer_of(self, name: str) -> nn.Module:
        """Return the module that has the weight of a name."""
        return self.model.get_submodule(name.rpartition(".")[0])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the network computes in: that of its first prunable weight."""
        return next(iter(self.weights.values())).dtype

    @property
    def flat(self) -> Tensor:
        """All prunable weights as one vector `[total]`."""
        return self.layout.flatten({name: weight.detach() for name, weight in self.weights.items()})

    def to(self, device: str | torch.device) -> Self:
        """Return a copy on `device`, or the network itself if it is there already."""
        if torch.empty(0, device=device).device == self.device:
            return self
        return self.copied(device)

    def copied(self, device: str | torch.device) -> Self:
        """Return a copy on `device` that shares no memory with this network."""
        model = copy.deepcopy(self.model).to(device)
        weights = {name: model.get_parameter(name).detach() for name in self.weights}
        inputs, token_ids = self.inputs, self.inputs.token_ids
        if token_ids is not None and token_ids.embedding is not None:
            # the embedding is a module of the network: use the one on `device`
            names = {id(module): name for name, module in self.model.named_modules()}
            embedding = model.get_submodule(names[id(token_ids.embedding)])
            inputs = replace(inputs, token_ids=replace(token_ids, embedding=embedding))
        return replace(self, model=model, weights=weights, inputs=inputs)

    def once(self, key: str, calibration: Tensor, compute: Callable[[], T]) -> T:
        """Return `compute()`, computed once for all criteria that share these calibration inputs.

        The result, which no caller may change, is stored under `key`. It is dropped together with
        the inputs, which are compared by identity, and recomputed if they were changed in place.
        """
        version = 0 if calibration.is_inference() else calibration._version  # noqa: SLF001 # not public
        entry = self._memo.get(key)
        if entry is None or entry[0]() is not calibration or entry[1] != version:
            # A weak reference: the memo must not keep large results alive through a whole search.
            memo = self._memo
            reference = weakref.ref(calibration, lambda _: memo.pop(key, None))
            entry = self._memo[key] = (reference, version, compute())
        result: T = entry[2]
        return result
