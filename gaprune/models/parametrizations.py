"""Weights that are computed from other parameters before every pass, and folding them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from gaprune.errors import GapruneError
from gaprune.models.forward import relative_difference, rounding_tolerance
from gaprune.models.layer_kinds import qualified_name

# Hooks of torch that compute a weight: type → what it does, and the function that removes it.
_HOOKS: dict[type, tuple[str, Any]] = {
    WeightNorm: ("uses weight normalisation", remove_weight_norm),
    SpectralNorm: ("uses spectral normalisation", remove_spectral_norm),
}


class ComputedWeight(NamedTuple):
    """A weight that is no parameter itself; names of its module and of the weight in it."""

    path: str
    module: nn.Module
    leaf: str
    problem: str  # why it cannot be pruned, in words
    remedy: str  # the function of torch.nn.utils that makes it a parameter

    @property
    def name(self) -> str:
        """Its qualified name."""
        return qualified_name(self.path, self.leaf)


def computed_weights(model: nn.Module) -> Iterator[ComputedWeight]:
    """Yield the weights that weight_norm, spectral_norm or a parametrization of torch computes."""
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if type(hook) in _HOOKS:
                problem, remove = _HOOKS[type(hook)]
                leaf: str = hook.name
                yield ComputedWeight(path, module, leaf, problem, remove.__name__)
        if parametrize.is_parametrized(module):
            for leaf in module.parametrizations:
                remedy = "parametrize.remove_parametrizations"
                yield ComputedWeight(path, module, leaf, "is parametrised", remedy)


def fold_parametrizations(model: nn.Module) -> nn.Module:
    """Replace computed weights by plain parameters with their values, in place; return the network.

    These are weights under `weight_norm` or `spectral_norm` of torch, as hooks or parametrizations,
    and under any other parametrization. They get their plain names, `weight` instead of
    `parametrizations.weight.original0`, and the values of evaluation mode. Copies of the network
    stay as they are.

    Examples:
        >>> from torch.nn.utils.parametrizations import weight_norm
        >>> net = torch.nn.Sequential(weight_norm(torch.nn.Linear(3, 2)))
        >>> sorted(fold_parametrizations(net).state_dict())
        ['0.bias', '0.weight']
    """
    for weight in list(computed_weights(model)):
        if parametrize.is_parametrized(weight.module):
            _fold_module(weight.module)
        for hook in list(weight.module._forward_pre_hooks.values()):
            if type(hook) in _HOOKS:
                _HOOKS[type(hook)][1](weight.module, weight.leaf)
        # remove_spectral_norm leaves this one behind, which torch wraps now
        for key, wrapped in list(weight.module._load_state_dict_pre_hooks.items()):
            if isinstance(getattr(wrapped, "hook", None), SpectralNormLoadStateDictPreHook):
                del weight.module._load_state_dict_pre_hooks[key]
    return model


def _fold_module(module: Any) -> None:  # noqa: ANN401 - torch makes a class per module
    # not torch's remove_parametrizations: it changes the class, which copies of a module share
    module.parametrizations.eval()  # spectral_norm updates its vectors in training mode
    with torch.no_grad():
        values = {leaf: getattr(module, leaf).clone() for leaf in module.parametrizations}
    trained = {leaf: [*chain.parameters()] for leaf, chain in module.parametrizations.items()}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for leaf, value in values.items():
        if trained[leaf]:
            learns = any(parameter.requires_grad for parameter in trained[leaf])
            module.register_parameter(leaf, nn.Parameter(value, requires_grad=learns))
        else:
            module.register_buffer(leaf, value)


@torch.no_grad()
def fold_checked(model: nn.Module, inputs: Tensor) -> tuple[str, ...]:
    """Fold the weights of a network in evaluation mode, in place; return their names.

    Raises:
        GapruneError: the outputs on `inputs` then differ by more than rounding.
    """
    names = tuple(dict.fromkeys(weight.name for weight in computed_weights(model)))
    if not names:
        return names
    expected = _outputs(model, inputs)
    outputs = _outputs(fold_parametrizations(model).requires_grad_(False), inputs)
    if isinstance(expected, Tensor) and isinstance(outputs, Tensor):
        difference = relative_difference(outputs, expected)
        if not difference <= rounding_tolerance(expected.dtype):  # also for NaN
            raise GapruneError(
                f"fold_parametrizations: the outputs with plain weights differ by {difference:.1e} "
                f"of the largest from those of the network ({', '.join(names)}); its layers may "
                "change their weights in forward: make them plain where the network is built"
            )
    return names


def _outputs(model: nn.Module, inputs: Tensor) -> object:
    try:
        return model(inputs)
    except Exception:  # noqa: BLE001 - whoever loads the network reports what it raises
        return None


@torch.no_grad()
def set_computed_weights(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give parametrised weights of a network the values of a folded state dict, in place.

    Return the other entries of the state dict.

    Raises:
        GapruneError: a parametrization cannot have such a value.
    """
    rest = dict(state)
    for weight in computed_weights(model):
        if weight.name not in rest or not parametrize.is_parametrized(weight.module):
            continue
        value = rest.pop(weight.name)
        chain: Any = weight.module.parametrizations[weight.leaf]  # type: ignore[index]
        with suppress(RuntimeError, NotImplementedError, ValueError):  # compared below
            chain.right_inverse(value.clone())  # it may keep the tensor
        if isinstance(chain[0], parametrizations._WeightNorm):
            length, direction = chain.original0, chain.original1
            direction.copy_(direction.where(length != 0, 1.0))  # of 0, which has no direction
        difference = relative_difference(chain(), value)
        if not difference <= rounding_tolerance(value.dtype):
            raise GapruneError(
                f"{weight.name}: its parametrization cannot have the pruned values (a difference "
                f"of {difference:.1e}); export the run as dense, whose weights are plain"
            )
    return rest


def attributes_of_hooks(model: nn.Module) -> Iterator[Tensor]:
    """Yield the weights that hooks have left as attributes with gradient history."""
    for weight in computed_weights(model):
        value = weight.module.__dict__.get(weight.leaf)
        if isinstance(value, Tensor):
            yield value
