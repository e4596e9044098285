"""Wanda: weights times the norm of the inputs that they multiply, alone and combined with LAMP."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gaprune.criteria.batching import batch_size, batches, largest_input, real_tokens
from gaprune.criteria.weights_only import flat_scores, lamp_scores
from gaprune.models.forward import functional_call
from gaprune.models.layer_kinds import HF_CONV1D, is_layer, weight_axes
from gaprune.models.network import DenseNetwork

COPIES = 6  # memory of the measurement, in sizes of the largest activation (float64 squares)
ROOT = 0.5  # exponent of ‖x‖ for inputs that may be far from the network's domain


def wanda(network: DenseNetwork, calibration: Tensor | None, *_: object) -> Tensor:
    """Score |w|·‖x‖₂, where x is all inputs that the weight multiplies (Sun et al. 2023, eq. 1).

    ‖x‖ cannot be compared between layers, since each has its own scale and number of positions.
    So the products are balanced between layers as LAMP balances magnitudes: inside a layer the
    order is that of |w|·‖x‖₂, and a constant factor on a layer's inputs changes nothing. The
    paper's own comparison groups are those of `wanda_rows`.
    """
    layers = products(network, calibration)
    return flat_scores(network, ((name, lamp_scores(values)) for name, values in layers))


def wanda_rows(network: DenseNetwork, calibration: Tensor | None, *_: object) -> Tensor:
    """Rank |w|·‖x‖₂ inside each output row (Sun et al. 2023, section 3).

    The score is rank over row length, in (0, 1], so one threshold for all layers keeps the same
    density in every row (all that one output reads; a vector is one row).
    """
    return flat_scores(network, ranked_rows(network, products(network, calibration)))


def lamp_wanda(network: DenseNetwork, calibration: Tensor | None, *_: object) -> Tensor:
    """LAMP decides how many weights each layer keeps, |w|·‖x‖₂^½ decides which (our combination).

    A layer's LAMP scores (Lee et al. 2021, eq. 4) are assigned in the order of the products, so at
    every density the counts per layer are those of `lamp`. Unlike the sizes of activations, these
    do not depend on how close the calibration inputs are to the network's domain. For the same
    reason the norm enters by its root, as in Zhang et al. 2024 (RIA), eq. 4.
    """
    return _lamp_scores_in_order(network, products(network, calibration, ROOT))


def lamp_wanda_rows(network: DenseNetwork, calibration: Tensor | None, *_: object) -> Tensor:
    """LAMP decides how many weights each layer keeps, the ranks of `wanda_rows` decide which."""
    ranks = ranked_rows(network, products(network, calibration))
    return _lamp_scores_in_order(network, ranks)


def _lamp_scores_in_order(network: DenseNetwork, orders: Iterable[tuple[str, Tensor]]) -> Tensor:
    """Assign each layer's LAMP scores by the magnitudes in `orders`; flat float32."""
    scores = (
        (name, _in_order(lamp_scores(network.weights[name].detach()), order))
        for name, order in orders
    )
    return flat_scores(network, scores)


def _in_order(values: Tensor, order: Tensor) -> Tensor:
    """Return the values of a layer, the largest where `order` of its shape is largest, and so on.

    Magnitudes of `order` count. NaN and Inf in it stay visible: `score` reports them.
    """
    values = values.flatten().sort(descending=True).values
    ranking = order.flatten().abs().argsort(descending=True, stable=True)
    scores = torch.empty_like(values).scatter_(0, ranking, values).view_as(order)
    return torch.where(order.isfinite(), scores, order)


def ranked_rows(
    network: DenseNetwork, layers: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Yield name and the rank of each value in its output row, divided by its length."""
    for name, values in layers:
        module = network.layer_of(name)
        # Transposed convolutions are ranked by their first axis too: a seed keeps its masks.
        is_conv = isinstance(module, _ConvNd)
        yield name, _row_ranks(values, (0,) if is_conv else weight_axes(network.model, name).rows)


def _row_ranks(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    if values.ndim < 2:
        rows = values.abs().reshape(1, -1)
        moved = values
    else:  # the axes of the rows first
        moved = values.movedim(axes, tuple(range(len(axes))))
        rows = moved.abs().flatten(len(axes)).flatten(0, len(axes) - 1)
    ranks = rows.argsort(dim=1, stable=True).argsort(dim=1) + 1
    ranked = (ranks.double() / rows.shape[1]).view(moved.shape)
    if values.ndim > 1:
        ranked = ranked.movedim(tuple(range(len(axes))), axes)
    return torch.where(values.isfinite(), ranked, values)


def products(
    network: DenseNetwork,
    calibration: Tensor | None,
    exponent: float = 1.0,
    names: Iterable[str] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield name and w·‖x‖₂^exponent in float64, of all weights or of some.

    It is w where the inputs of a weight are not observed: in recurrent layers and in experts.
    """
    assert calibration is not None  # `score_with` has checked it
    energies = network.once("energies", calibration, partial(input_energies, network, calibration))
    for name in network.weights if names is None else names:
        weight = network.weights[name]
        energy = energies.get(name, torch.ones_like(weight))
        yield name, weight.detach().double() * energy.sqrt().pow(exponent)


def input_energies(network: DenseNetwork, calibration: Tensor) -> dict[str, Tensor]:
    """Return Σ x² over inputs and positions for every weight: name → its shape, float64.

    Forward hooks observe the layers in `RULES`. A weight shared by several modules adds up their
    inputs. Weights of other modules, and of modules that are never called, are missing.
    """
    energies: dict[str, Tensor] = {}
    with torch.no_grad():
        largest = largest_input(network.model, next(batches(network, calibration, 1)))
        with _recording(network, energies) as states:
            for batch in batches(network, calibration, batch_size(largest, COPIES)):
                states["real"] = real_tokens(network.inputs.padding, batch)
                network.model(batch)
    return energies


@contextmanager
def _recording(
    network: DenseNetwork, energies: dict[str, Tensor]
) -> Iterator[dict[str, Tensor | None]]:
    """Add up squared inputs by weight in `energies` while the network runs inside the block.

    The caller puts the `real_tokens` of each batch under "real".
    """
    states: dict[str, Tensor | None] = {}
    names = {id(network.model.get_parameter(name)): name for name in network.weights}
    measuring = False  # a rule runs its module once more, which calls the hook again
    # Sums over equal rows are allocated before the activations: between these, small lasting blocks
    # would split the heap (SmolLM2 took 4.9 GB in place of 2.9).
    rows = {name: w.new_zeros(1, *w.shape[1:]).double() for name, w in network.weights.items()}

    def hook(rule: Rule) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal measuring
            if measuring:
                return
            measuring = True
            if rule is not _attention_energy:
                args = tuple(_without_padding(arg, states.get("real")) for arg in args)
            try:
                by_parameter = rule(module, args, kwargs)
            finally:
                measuring = False
            for parameter, energy in by_parameter.items():
                name = names.get(id(module.get_parameter(parameter)))
                if name is None:
                    continue
                before = energies.get(name, rows[name])
                equal = energy.ndim > 1 and energy.stride(0) == 0
                if equal and before.data_ptr() == rows[name].data_ptr():
                    energies[name] = rows[name].add_(energy[:1]).expand_as(energy)
                else:
                    energies[name] = _rows_shared(before + energy.double())

        return record

    with ExitStack() as hooks:
        for module, (kind, rule) in product(network.model.modules(), RULES.items()):
            if is_layer(module, kind):
                handle = module.register_forward_pre_hook(hook(rule), with_kwargs=True)
                hooks.enter_context(handle)
        yield states


def _without_padding(values: object, is_real: Tensor | None) -> object:
    """Return the inputs of a layer with zeros where texts are padded: these have no energy."""
    if is_real is None or not isinstance(values, Tensor) or not values.is_floating_point():
        return values
    if values.shape[:-1] != is_real.shape:
        return values
    return values * is_real.unsqueeze(-1)


def _rows_shared(energy: Tensor) -> Tensor:
    """Return the energy with the memory of one row if all are equal, as those of linear layers.

    The same for columns: weights [in, out] have inputs on axis 0.
    """
    for first in (energy[:1], energy[..., :1]) if energy.ndim > 1 else ():
        if bool((energy == first).all()):
            return first.clone().expand_as(energy)
    return energy


def _affine_energy(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Tensor]:
    """Return the energies of any module that is affine in its parameters.

    The derivative of the summed output by a weight is the sum of the inputs that it multiplies. On
    x² instead of x this is the sum of squares. A bias multiplies 1.
    """
    # a bilinear layer multiplies two inputs
    squares = (
        arg.float().square() if isinstance(arg, Tensor) and arg.is_floating_point() else arg
        for arg in args
    )
    leaves = {name: p.detach().float().requires_grad_() for name, p in module.named_parameters()}
    with torch.enable_grad():
        total = functional_call(module, leaves, tuple(squares), kwargs).sum()
        gradients = torch.autograd.grad(total, list(leaves.values()))
    return dict(zip(leaves, gradients, strict=True))


def _linear_energy(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Tensor]:
    """Return what `_affine_energy` does, of a linear layer: a quarter of the work."""
    own = dict(module.named_parameters())
    plain = type(module).forward is nn.Linear.forward and own.keys() <= {"weight", "bias"}
    if not plain or len(args) != 1 or args[0].ndim < 2:  # one vector is no batch
        return _affine_energy(module, args, kwargs)
    energies = {"weight": _column_energy(args[0]).expand_as(own["weight"])}
    if "bias" in own:
        energies["bias"] = torch.full_like(own["bias"], args[0].shape[:-1].numel())
    return energies


def _attention_energy(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Tensor]:
    """Return the energies of the projections that multi-head attention applies by itself."""
    assert isinstance(module, nn.MultiheadAttention)
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    columns = {part: _column_energy(bound[part]) for part in ("query", "key", "value")}
    size = module.embed_dim
    rows = {part: column.expand(size, -1) for part, column in columns.items()}
    # With the identity as output projection, the module returns what the projection multiplies.
    identity = {"out_proj.weight": torch.eye(size).to(module.out_proj.weight)}
    if module.out_proj.bias is not None:
        identity["out_proj.bias"] = torch.zeros_like(module.out_proj.bias)
    heads, _ = functional_call(module, identity, args, kwargs)
    energies = {"out_proj.weight": _column_energy(heads).expand(size, -1)}
    if module.in_proj_weight is not None:
        return {**energies, "in_proj_weight": torch.cat(list(rows.values()))}
    # torch annotates in_proj_weight as never None; it is None if key and value sizes differ
    separate = {f"{part[0]}_proj_weight": row for part, row in rows.items()}  # type: ignore[unreachable]
    return {**energies, **separate}


def _column_energy(inputs: Tensor) -> Tensor:
    return inputs.float().square().flatten(0, -2).sum(dim=0, dtype=torch.float64)


Rule = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], dict[str, Tensor]]
RULES: dict[type[nn.Module] | str, Rule] = {
    nn.Linear: _linear_energy,
    _ConvNd: _affine_energy,  # 1-D to 3-D, transposed too
    nn.Bilinear: _affine_energy,
    HF_CONV1D: _affine_energy,
    nn.Embedding: _affine_energy,
    nn.MultiheadAttention: _attention_energy,
}
