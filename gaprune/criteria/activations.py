"""Wanda: weights times the norm of the inputs that they multiply, and LAMP's counts with it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from gaprune.criteria.network import batches, checked, fitting
from gaprune.criteria.weights_only import lamp_scores
from gaprune.models.network import DenseNetwork

LIVE = 6  # times the largest activation that measuring holds at once, squares in float64 among it

ROOT = 0.5  # exponent of ‖x‖ where calibration inputs may be far from the network's domain


def wanda(
    network: DenseNetwork,
    calibration: Tensor | None,
    _density: float | None,
    _generator: torch.Generator,
) -> Tensor:
    """Score |w|·‖x‖₂, x being all inputs that the weight multiplies (Sun et al. 2023, eq. 1).

    ‖x‖ itself cannot be compared between layers, since each has its own scale and number of
    positions. So the products are balanced between layers as LAMP balances magnitudes
    (`lamp_scores` of them): inside a layer the order is that of |w|·‖x‖₂, and no factor on a
    layer's inputs changes anything. Weights whose inputs cannot be seen are scored by |w|. The
    paper's own comparison groups are those of `wanda_rows`.
    """
    products = _products(network, calibration)
    scores = {name: lamp_scores(product) for name, product in products.items()}
    return network.layout.flatten(scores).float()


def wanda_rows(
    network: DenseNetwork,
    calibration: Tensor | None,
    _density: float | None,
    _generator: torch.Generator,
) -> Tensor:
    """Rank |w|·‖x‖₂ inside each output row, as Sun et al. 2023, section 3, compare.

    The score is rank over row length, (0, 1], so that one cut through all layers keeps the same
    density in every row (the first axis of a weight; a vector is one row). Where rows are short,
    as in depthwise kernels, a low density leaves nothing of many.
    """
    scores = {name: _row_ranks(one) for name, one in _products(network, calibration).items()}
    return network.layout.flatten(scores).float()


def lamp_wanda(
    network: DenseNetwork,
    calibration: Tensor | None,
    _density: float | None,
    _generator: torch.Generator,
) -> Tensor:
    """LAMP decides how many weights each layer keeps, |w|·‖x‖₂^½ which (our own combination).

    A layer's LAMP scores (Lee et al. 2021, eq. 4) are handed out in the order of the products, so
    at every density the best k of the whole network have the counts of `lamp`. These look at
    weights alone: they do not depend on how near the calibration inputs are to the network's domain, which
    the sizes of activations do. For the same reason the norm goes in by its root, as in Zhang et
    al. 2024 (RIA), eq. 4.
    """
    return _in_lamp_counts(network, _products(network, calibration, ROOT))


def lamp_wanda_rows(
    network: DenseNetwork,
    calibration: Tensor | None,
    _density: float | None,
    _generator: torch.Generator,
) -> Tensor:
    """LAMP decides how many weights each layer keeps, the ranks of `wanda_rows` which."""
    products = _products(network, calibration)
    return _in_lamp_counts(network, {name: _row_ranks(one) for name, one in products.items()})


def _in_lamp_counts(network: DenseNetwork, orders: Mapping[str, Tensor]) -> Tensor:
    """Hand out each layer's LAMP scores in the order of the sizes in `orders`, flat float32."""
    scores = {}
    for name, order in orders.items():
        values = lamp_scores(network.weights[name].detach()).flatten().sort(descending=True).values
        places = order.flatten().abs().argsort(descending=True, stable=True)
        given = torch.empty_like(values).scatter_(0, places, values).view_as(order)
        scores[name] = torch.where(order.isfinite(), given, order)  # whoever asked is to see
    return network.layout.flatten(scores).float()


def _row_ranks(product: Tensor) -> Tensor:
    """Return each weight's rank in its row over the row's length, in (0, 1]."""
    rows = product.abs().reshape(len(product) if product.ndim > 1 else 1, -1)
    ranks = rows.argsort(dim=1, stable=True).argsort(dim=1) + 1
    ranked = (ranks.double() / rows.shape[1]).view_as(product)
    return torch.where(product.isfinite(), ranked, product)  # whoever asked is to see


def _products(
    network: DenseNetwork, calibration: Tensor | None, exponent: float = 1.0
) -> dict[str, Tensor]:
    """Return w·‖x‖₂ to the exponent, float64; w where the inputs cannot be seen."""
    shown = checked(calibration)
    energies = network.once("energies", shown, lambda: input_energies(network, shown))
    return {
        name: weight.detach().double()
        * energies.get(name, torch.ones_like(weight)).sqrt().pow(exponent)
        for name, weight in network.weights.items()
    }


def input_energies(network: DenseNetwork, calibration: Tensor | None) -> dict[str, Tensor]:
    """Return Σ x² over calibration inputs and positions for every weight: name → its shape, float64.

    Linear, convolution (transposed too), embedding and multi-head attention weights are found by
    hooks; a weight shared by several modules adds up their inputs. Weights of other modules, and
    of modules that were never called, are missing.

    Raises:
        InputError: there are no calibration inputs.
    """
    with torch.no_grad():
        size = fitting(_widest(network.model, next(batches(network, calibration, 1))), passes=LIVE)
    recorder = _Recorder(network)
    try:
        with torch.no_grad():
            for batch in batches(network, calibration, size):
                network.model(batch)
    finally:
        recorder.remove()
    return dict(recorder.energies)


def _widest(model: nn.Module, example: Tensor) -> int:
    """Return the bytes of the largest tensor that a module takes, for one input `[1, …]`."""
    sizes = [1]

    def note(_module: nn.Module, args: tuple[Any, ...]) -> None:
        sizes.extend(one.nbytes for one in args if isinstance(one, Tensor))

    handles = [module.register_forward_pre_hook(note) for module in model.modules()]
    try:
        model(example)
    finally:
        for handle in handles:
            handle.remove()
    return max(sizes)


class _Recorder:
    """Forward pre-hooks that add up squared inputs while the model runs."""

    def __init__(self, network: DenseNetwork) -> None:
        self.energies: dict[str, Tensor] = {}
        self._names = {id(network.model.get_parameter(name)): name for name in network.weights}
        self._busy = False  # measuring runs the module once more, and with it this hook
        self._handles = [
            module.register_forward_pre_hook(self._hook(rule), with_kwargs=True)
            for module in network.model.modules()
            for kind, rule in RULES.items()
            if isinstance(module, kind)
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, rule: Rule) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._busy:
                return
            self._busy = True
            try:
                found = rule(module, args, kwargs)
            finally:
                self._busy = False
            for leaf, energy in found.items():
                name = self._names.get(id(module.get_parameter(leaf)))
                if name is not None:
                    self.energies[name] = self.energies.get(name, 0) + energy.double()

        return record


def _affine_energy(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Tensor]:
    """Energies of a module that is affine in its parameters, whatever its geometry.

    The derivative of a summed output by a weight is the sum of the inputs that it multiplies; shown
    x² instead of x, that is the sum of squares. A bias multiplies 1.
    """
    inputs = args[0].float().square() if args[0].is_floating_point() else args[0]
    leaves = {name: p.detach().float().requires_grad_() for name, p in module.named_parameters()}
    with torch.enable_grad():
        total = functional_call(module, leaves, (inputs, *args[1:]), kwargs).sum()
        gradients = torch.autograd.grad(total, list(leaves.values()))
    return dict(zip(leaves, gradients, strict=True))


def _attention_energy(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Tensor]:
    """Energies of the projections of multi-head attention, which it applies without submodules."""
    assert isinstance(module, nn.MultiheadAttention)
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    columns = {part: _column_energy(bound[part]) for part in ("query", "key", "value")}
    size = module.embed_dim
    rows = {part: column.expand(size, -1) for part, column in columns.items()}
    # with the identity as output projection the module returns what the projection multiplies
    identity = {"out_proj.weight": torch.eye(size).to(module.out_proj.weight)}
    if module.out_proj.bias is not None:
        identity["out_proj.bias"] = torch.zeros_like(module.out_proj.bias)
    heads, _ = functional_call(module, identity, args, kwargs)
    energies = {"out_proj.weight": _column_energy(heads).expand(size, -1)}
    if module.in_proj_weight is not None:
        return {**energies, "in_proj_weight": torch.cat(list(rows.values()))}
    # torch annotates in_proj_weight as always there; it is None where key and value sizes differ
    split = {  # type: ignore[unreachable]
        "query": "q_proj_weight",
        "key": "k_proj_weight",
        "value": "v_proj_weight",
    }
    return {**energies, **{split[part]: row for part, row in rows.items()}}


def _column_energy(inputs: Tensor) -> Tensor:
    return inputs.float().square().flatten(0, -2).sum(dim=0, dtype=torch.float64)


Rule = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], dict[str, Tensor]]
RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _affine_energy,
    _ConvNd: _affine_energy,  # 1-D to 3-D, transposed too
    nn.Embedding: _affine_energy,
    nn.MultiheadAttention: _attention_energy,
}
