"""One tensor goes in and one comes out, whatever the network's own signature."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from gaprune.errors import InputError
from gaprune.models.prunable import find_prunable
from gaprune.models.sources.outputs import check_one_input, choose_output, select_output


class Pair(NamedTuple):
    """A named tuple of two outputs."""

    logits: Tensor
    hidden: Tensor


@dataclass
class Record:
    """A dataclass of two outputs."""

    logits: Tensor
    hidden: Tensor


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda logits, hidden: (logits, hidden),
    "list": lambda logits, hidden: [logits, hidden],
    "dict": lambda logits, hidden: {"logits": logits, "hidden": hidden},
    "ordered": lambda logits, hidden: OrderedDict(logits=logits, hidden=hidden),
    "named-tuple": Pair,
    "dataclass": Record,
    "nested": lambda logits, hidden: {"heads": (logits, hidden)},
}
POSITIONS = {0: 0, 1: 1, -1: 1, "1": 1}
NAMES = {"logits": 0, "hidden": 1}
CHOICES: dict[str, dict[Any, int]] = {  # form → output → 0 for logits, 1 for hidden values
    "tuple": POSITIONS,
    "list": POSITIONS,
    "dict": {**POSITIONS, **NAMES},
    "ordered": {**POSITIONS, **NAMES},
    "named-tuple": {**POSITIONS, **NAMES},
    "dataclass": NAMES,
    "nested": {"heads.1": 1, "0.0": 0, "0.-1": 1},
}
INPUTS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


class TwoHeaded(nn.Module):
    """3 → 4 → 2; returns the last layer's output and the one before it, in a form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Any:  # noqa: ANN401 - the form decides the type
        hidden = self.first(inputs)
        return FORMS[self.form](self.second(hidden), hidden)


@pytest.mark.parametrize("form", CHOICES)
def test_an_output_is_chosen_by_position_or_name(form: str) -> None:
    """Positions count from 0 or from the end; keys, fields and attributes are names."""
    model = TwoHeaded(form)
    hidden = model.first(INPUTS)
    expected = (model.second(hidden), hidden)
    for output, index in CHOICES[form].items():
        chosen = choose_output(copy.deepcopy(model), output)
        assert torch.equal(chosen(INPUTS), expected[index])


def test_a_choice_can_be_refined() -> None:
    """A second choice selects from the result of the first; dots do the same in one step."""
    model = TwoHeaded("nested")
    expected = model.first(INPUTS)
    for output, message in (("heads.2", "tuple of 0: "), ("head.1", "'heads': tuple of 2$")):
        with pytest.raises(InputError, match=message):
            choose_output(copy.deepcopy(model), output)(INPUTS)
    assert torch.equal(choose_output(choose_output(model, "heads"), 1)(INPUTS), expected)
    assert select_output({"a.b": 1, "a": {"b": 2}}, "a.b") == 1  # a whole key comes first


def test_the_network_stays_usable() -> None:
    """A chosen output keeps names and bits, and `functional_call` replaces weights as before."""
    model = TwoHeaded("dict")
    before = copy.deepcopy(model.state_dict())
    chosen = choose_output(model, "logits")
    assert list(find_prunable(chosen)) == ["first.weight", "second.weight"]
    assert list(chosen.state_dict()) == list(before)
    assert all(torch.equal(chosen.state_dict()[name], value) for name, value in before.items())
    outputs = functional_call(chosen, {"second.weight": torch.zeros(2, 4)}, (INPUTS,))
    assert torch.equal(outputs, before["second.bias"].expand(5, 2))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_keep_the_choice(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    """Deep copies and pickles return the same tensor, on weights of their own."""
    model = choose_output(TwoHeaded("tuple"), 1)
    expected = model(INPUTS)
    other = duplicate(model)
    with torch.no_grad():
        next(model.parameters()).zero_()
    assert torch.equal(other(INPUTS), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("output", ["scores", 2, -3])
def test_a_missing_output_is_refused(form: str, output: str | int) -> None:
    """The message lists what the network returns, with shapes."""
    with pytest.raises(InputError, match=f"{output!r}") as caught:
        choose_output(TwoHeaded(form), output)(INPUTS)
    if form != "nested":
        assert "[5, 2]" in str(caught.value)
        assert "[5, 4]" in str(caught.value)


@pytest.mark.parametrize("output", [0, "data"])
def test_choosing_from_one_tensor_is_refused(output: str | int) -> None:
    """A network that returns a tensor has no other outputs; not even its attributes."""
    with pytest.raises(InputError, match=r"\[5, 2\]; .*output="):
        choose_output(nn.Linear(3, 2), output)(INPUTS)


class Keywords(nn.Module):
    """Takes its input by keyword only."""

    def forward(self, *, image: Tensor) -> Tensor:
        return image


class Optional(nn.Module):
    """Takes one input; the others have defaults."""

    def forward(self, image: Tensor, mask: Tensor | None = None, *more: Tensor) -> Tensor:
        return image


def test_a_network_that_needs_several_tensors_is_refused() -> None:
    """The message names the inputs; inputs with a default are allowed."""
    for model, message in (
        (nn.MultiheadAttention(4, 2), "needs query, key, value"),
        (Keywords(), "by position"),
    ):
        with pytest.raises(InputError, match=message):
            check_one_input(model)
    check_one_input(Optional())
    check_one_input(nn.Sequential(nn.Linear(3, 2)))
