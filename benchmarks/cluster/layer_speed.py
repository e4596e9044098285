"""Speed-up of two actors over one where one-shot masks are refined block by block."""

from __future__ import annotations

import time
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cluster.local_ray import local_ray, wait_for_all
from gaprune.criteria.layer_tasks import layer_tasks_on
from gaprune.criteria.swaps import refined_scores
from gaprune.errors import GapruneError
from gaprune.masks.supermask import Layout
from gaprune.models.input_spec import InputSpec
from gaprune.models.network import DenseNetwork
from gaprune.workers import WorkerOptions
from gaprune.workers.ray_pool import RayWorkers

# The matrices of the blocks' inputs take 322 MB: too much for one pass of the driver, so actors
# measure them too, see `work_on_layers`.
WIDTH, HIDDEN, BLOCKS, TOKENS = 576, 1536, 24, 32  # the blocks are those of SmolLM2-135M
INPUTS = 256


class Block(nn.Module):
    """A transformer's block with one head and seven linear layers, as Llama has them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.gate, self.up = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what `x`, `[N, tokens, width]`, becomes."""
        normed = self.norms[0](x)
        query, key, value = (layer(normed) for layer in self.attention[:3])
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + cast("Tensor", self.attention[3](mixed))
        normed = self.norms[1](x)
        added: Tensor = self.down(functional.silu(self.gate(normed)) * self.up(normed))
        return x + added


def measure_layers(
    width: int = WIDTH, hidden: int = HIDDEN, blocks: int = BLOCKS, inputs: int = INPUTS
) -> dict[str, float]:
    """Refine half of the weights on one actor and on two, in turn; the masks must be equal."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(width, hidden) for _ in range(blocks)))
    weights = {
        name: weight.detach() for name, weight in model.named_parameters() if weight.ndim > 1
    }
    layout = Layout.of(weights)
    network = DenseNetwork(model, weights, layout, InputSpec((TOKENS, width), "signal"))
    calibration, scores = torch.randn(inputs, TOKENS, width), network.flat.abs()
    seconds: dict[int, float] = {}
    refined: list[Tensor] = []
    with local_ray(2):
        for count in (2, 1):
            with RayWorkers(network, WorkerOptions(count)) as workers:
                wait_for_all(workers)
                started = time.perf_counter()
                with layer_tasks_on(workers.run):
                    generator = torch.Generator().manual_seed(0)
                    refined.append(
                        refined_scores(
                            scores.clone(), network, calibration, 0.5, generator, correlated=False
                        )
                    )
                seconds[count] = time.perf_counter() - started
    if not torch.equal(*refined):
        raise GapruneError("two actors find other masks than one")
    return {"layers_speedup_2": seconds[1] / seconds[2], "layers_seconds_2": seconds[2]}
