"""Counts per layer of a network of blocks, from what it costs to prune each block alone.

The measured damage of a block is divided among its layers as that of the kinds of layers, each
pruned alone in all blocks. A layer's damage at other densities is taken to follow the share of
Wanda's squared products (w·‖x‖)² that is removed, and damages of layers to add up. Then the best
counts are those of one ranking of all squared products, each layer's on the scale of its damage.
EvoPress (Sieberling et al. 2024) searches such counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial

from torch import Tensor

from gaprune.criteria.activations import in_order, products, ranked_rows
from gaprune.criteria.weights_only import flat_scores
from gaprune.models.blocks import sequential_blocks
from gaprune.models.network import DenseNetwork
from gaprune.models.time_limit import check_time

Damage = Callable[[Mapping[str, Tensor]], float]
"""Weights that replace those of the network → distance of its outputs from the dense ones."""


def block_wanda_rows(
    network: DenseNetwork, calibration: Tensor, density: float, damage: Damage, trust: float = 1.0
) -> Tensor:
    """Score weights for measured counts per layer, and in it equal counts per row; flat float32.

    Args:
        network: a network with `sequential_blocks`.
        calibration: inputs of which the products are made.
        density: of the mask whose damage is measured; the counts suit this density.
        damage: what replaced weights cost.
        trust: exponent of the damages; below 1 the counts differ less.

    Raises:
        LookupError: the network has no blocks.
    """
    scales = network.once(
        f"damages at {density}",
        calibration,
        partial(_scales, network, calibration, density, damage),
    )

    def layers() -> Iterator[tuple[str, Tensor]]:
        for name, values in products(network, calibration):
            scale, total = scales[name]
            squares = values.square().mul_(scale**trust / max(total, 1e-300))
            ((_, ranks),) = ranked_rows(network, [(name, values)])
            yield name, in_order(squares, ranks)

    return flat_scores(network, layers())


def _scales(
    network: DenseNetwork, calibration: Tensor, density: float, damage: Damage
) -> dict[str, tuple[float, float]]:
    """Return the damage of every layer, and the sum of squared products that are removed for it."""
    blocks = sequential_blocks(network.model, calibration[:1].to(network.device))
    inside = {
        block: [name for name in network.weights if name.startswith(f"{block}.")]
        for block in blocks
    }
    kinds: dict[str, list[str]] = {}
    for block, names in inside.items():
        for name in names:
            kinds.setdefault(name.removeprefix(block), []).append(name)
    if not kinds:
        raise LookupError
    removed: dict[str, float] = {}

    def measure(names: Collection[str]) -> float:
        check_time()
        pruned = {}
        for name, values in products(network, calibration, names=names):
            ((_, ranks),) = ranked_rows(network, [(name, values)])
            is_kept = ranks > 1 - density
            removed[name] = float(values.square().masked_fill_(is_kept, 0).sum())
            pruned[name] = network.weights[name].detach() * is_kept
        return damage(pruned)

    by_kind = {kind: measure(names) for kind, names in kinds.items()}
    by_block = {block: measure(names) for block, names in inside.items()}
    scales = {}
    for block, names in inside.items():
        for name in names:
            share = by_kind[name.removeprefix(block)] / sum(by_kind.values())
            scales[name] = by_block[block] * share, removed[name]
    for name in network.weights.keys() - scales.keys():  # such as a head: as the costliest block
        measure([name])
        scales[name] = max(by_block.values()), removed[name]
    return scales
