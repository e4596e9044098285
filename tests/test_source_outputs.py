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
from gaprune.models.input_spec import InputOptions
from gaprune.models.prunable import find_prunable
from gaprune.models.sources.outputs import (
    check_one_input,
    choose_output,
    describe_outputs,
    select_output,
)
from gaprune.models.target import target_from_module


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
}
BY_PLACE = ("tuple", "list", "dict", "ordered", "named-tuple")
BY_NAME = ("dict", "ordered", "named-tuple", "dataclass")


class TwoHeaded(nn.Module):
    """3 → 4 → 2; returns the last layer's output and the one before it, in a form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Any:  # noqa: ANN401 - the point of it
        hidden = self.first(inputs)
        return FORMS[self.form](self.second(hidden), hidden)


def parts(model: TwoHeaded, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and hidden values, computed from the layers alone."""
    hidden = model.first(inputs)
    return model.second(hidden), hidden


@pytest.mark.parametrize("form", BY_PLACE)
@pytest.mark.parametrize("place", [0, 1, -1, pytest.param("1", id="text")])
def test_an_output_is_chosen_by_its_place(form: str, place: int | str) -> None:
    """Tuples, lists and dicts count their outputs from 0, from the end too, also as text."""
    model = TwoHeaded(form)
    inputs = torch.randn(5, 3)
    expected = parts(model, inputs)[int(place)]
    assert torch.equal(choose_output(model, place)(inputs), expected)


@pytest.mark.parametrize("form", BY_NAME)
@pytest.mark.parametrize(("name", "place"), [("logits", 0), ("hidden", 1)])
def test_an_output_is_chosen_by_its_name(form: str, name: str, place: int) -> None:
    """Keys of a dict, fields of a named tuple and attributes of a dataclass are names."""
    model = TwoHeaded(form)
    inputs = torch.randn(5, 3)
    assert torch.equal(choose_output(model, name)(inputs), parts(model, inputs)[place])


def test_a_choice_inside_a_choice() -> None:
    """The second choice is made inside what the first one gives."""

    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, inputs: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
            return {"heads": (inputs, self.layer(inputs))}

    model = Nested()
    inputs = torch.randn(5, 3)
    expected = model.layer(inputs)
    for at in ("heads.1", "0.1", "0.-1"):
        assert torch.equal(choose_output(copy.deepcopy(model), at)(inputs), expected)
    with pytest.raises(InputError, match=r"no 2; .*tuple of 0: "):
        choose_output(copy.deepcopy(model), "heads.2")(inputs)
    with pytest.raises(InputError, match=r"'head'; .*'heads': tuple of 2$"):
        choose_output(copy.deepcopy(model), "head.1")(inputs)
    assert torch.equal(choose_output(choose_output(model, "heads"), 1)(inputs), expected)


def test_a_key_with_a_dot_is_a_key() -> None:
    """Only where there is none of the whole name do dots lead inside."""
    assert select_output({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    assert select_output({"a": {"b": 2}}, "a.b") == 2


def test_parameters_keep_their_names_and_values() -> None:
    """A chosen output changes neither the names nor one bit of the state dict."""
    model = TwoHeaded("dict")
    before = copy.deepcopy(model.state_dict())
    chosen = choose_output(model, "logits")
    assert list(find_prunable(chosen)) == ["first.weight", "second.weight"]
    assert list(chosen.state_dict()) == list(before)
    assert all(torch.equal(chosen.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copy", "pickle"],
)
def test_copies_keep_the_choice(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    """Deep copies and pickles return the same tensor, on weights of their own."""
    model = choose_output(TwoHeaded("tuple"), 1)
    inputs = torch.randn(5, 3)
    expected = model(inputs)
    other = duplicate(model)
    with torch.no_grad():
        next(model.parameters()).zero_()
    assert torch.equal(other(inputs), expected)


def test_masked_weights_reach_the_chosen_output() -> None:
    """`torch.func.functional_call` runs the choice on replaced weights."""
    model = choose_output(TwoHeaded("dict"), "logits")
    replaced = {"second.weight": torch.zeros(2, 4)}
    outputs = functional_call(model, replaced, (torch.randn(5, 3),))
    assert torch.equal(outputs, model.get_parameter("second.bias").expand(5, 2))


def test_a_network_with_a_chosen_output_can_be_a_target() -> None:
    """What was refused for its outputs is taken once one of them is chosen."""
    options = InputOptions(shape=(3,))
    with pytest.raises(InputError, match="one tensor"):
        target_from_module(TwoHeaded("dict"), inputs=options)
    with pytest.raises(InputError, match=r"^output: .*'logit'"):
        target_from_module(choose_output(TwoHeaded("dict"), "logit"), inputs=options)
    target = target_from_module(choose_output(TwoHeaded("dict"), "logits"), inputs=options)
    assert target.model(target.example()).shape == (1, 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("output", ["scores", 2, -3])
def test_an_output_that_is_not_there_is_refused(form: str, output: str | int) -> None:
    """The message lists what the network returns, with shapes."""
    model = choose_output(TwoHeaded(form), output)
    with pytest.raises(InputError, match="there is no") as caught:
        model(torch.randn(5, 3))
    message = str(caught.value)
    assert repr(output) in message
    assert "[5, 2]" in message
    assert "[5, 4]" in message


def test_choosing_from_one_tensor_is_refused() -> None:
    """A network that returns a tensor has no other outputs; not even its attributes."""
    for output in (0, "data"):
        model = choose_output(nn.Linear(3, 2), output)
        with pytest.raises(InputError, match=r"\[5, 2\]; leave --output"):
            model(torch.randn(5, 3))


def test_outputs_are_described_with_names_and_shapes() -> None:
    """Every output is named as it can be chosen."""
    logits, hidden = torch.zeros(5, 2), torch.zeros(5, 4)
    assert describe_outputs({"a": logits, "b": None}) == (
        "the network returns a dict of 'a': tensor [5, 2], 'b': NoneType"
    )
    assert describe_outputs((logits, hidden)).endswith("of 0: tensor [5, 2], 1: tensor [5, 4]")
    assert describe_outputs(Pair(logits, hidden)).startswith(
        "the network returns a Pair of 'logits'"
    )
    assert describe_outputs(None) == "the network returns a NoneType of nothing"


def test_a_network_that_needs_several_tensors_is_refused() -> None:
    """The message names the inputs and the way out; inputs with a default are no obstacle."""
    with pytest.raises(InputError, match=r"3 inputs \(query, key, value\).*factory"):
        check_one_input(nn.MultiheadAttention(4, 2))

    class Keywords(nn.Module):
        def forward(self, *, image: Tensor) -> Tensor:
            return image

    with pytest.raises(InputError, match="by position"):
        check_one_input(Keywords())

    class Optional(nn.Module):
        def forward(self, image: Tensor, mask: Tensor | None = None, *more: Tensor) -> Tensor:
            return image

    check_one_input(Optional())
    check_one_input(nn.Sequential(nn.Linear(3, 2)))
