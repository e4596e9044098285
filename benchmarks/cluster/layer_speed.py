"""Speed-up of two actors over one where one-shot masks are refined block by block."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from benchmarks.cluster.local_ray import local_ray, wait_for_all
from gaprune.criteria.layer_tasks import layer_tasks_on
from gaprune.criteria.swaps import refined_scores
from gaprune.errors import GapruneError
from gaprune.masks.supermask import Layout
from gaprune.models.input_spec import InputSpec
from gaprune.models.network import DenseNetwork
from gaprune.workers import WorkerOptions
from gaprune.workers.ray_pool import RayWorkers

# the matrices of the blocks' inputs take 340 MB: too many for one pass, see `work_on_layers`
WIDTH, HIDDEN, BLOCKS, INPUTS = 1024, 3072, 8, 8192


class FeedForward(nn.Module):
    """The feed-forward half of a transformer's block."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the outputs of the layers to `x`, `[N, width]`."""
        outputs: Tensor = self.layers(x)
        return x + outputs


def measure_layers(
    width: int = WIDTH, hidden: int = HIDDEN, blocks: int = BLOCKS, inputs: int = INPUTS
) -> dict[str, float]:
    """Refine half of the weights on one actor and on two, in turn; the masks must be equal."""
    torch.manual_seed(0)
    model = nn.Sequential(*(FeedForward(width, hidden) for _ in range(blocks)))
    weights = {
        name: weight.detach() for name, weight in model.named_parameters() if weight.ndim > 1
    }
    layout = Layout.of(weights)
    network = DenseNetwork(model, weights, layout, InputSpec((width,), "vector"))
    calibration, scores = torch.randn(inputs, width), network.flat.abs()
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
