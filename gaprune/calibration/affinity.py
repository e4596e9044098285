"""Which procedural generator looks like the domain? The teacher tells, without any data.

A network separates inputs like those it was trained on: it is sure about each, and its answers
differ between them. The mutual information between input and class, H(mean p) − mean H(p) in nats
(the logarithm of the inception score, Salimans et al. 2016, section 4), measures both at once. On
the reference networks it orders the generators as the accuracy of masks searched with them does.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gaprune.calibration.generators.draws import InputGenerator, to_network
from gaprune.models.input_spec import InputSpec

SAMPLE = 1024  # inputs per generator
SHARPNESS = 0.15  # nats: a generator this far behind the best gets 1/e of its share


@torch.no_grad()
def affinities(
    model: nn.Module,
    spec: InputSpec,
    generators: Mapping[str, InputGenerator],
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> dict[str, float]:
    """Return the mutual information of every generator in nats, best first.

    Networks whose outputs are not logits `[N, classes]` get equal values, in the given order.
    """
    device = next(model.parameters(), torch.empty(0)).device
    found = {}
    for name, draw in generators.items():
        inputs = to_network(spec, draw(spec, SAMPLE, generator), dtype).to(device)
        found[name] = _information(torch.cat([model(batch) for batch in inputs.split(256)]))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def shares(affinity: Mapping[str, float]) -> dict[str, float]:
    """Turn affinities into the share of each generator in a batch; they add up to 1."""
    values = torch.tensor(list(affinity.values()), dtype=torch.float64)
    portions = torch.softmax(values / SHARPNESS, dim=0).tolist()
    return dict(zip(affinity, portions, strict=True))


def _information(outputs: Tensor) -> float:
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return 0.0
    probabilities = outputs.double().softmax(1)
    value = _entropy(probabilities.mean(0)) - _entropy(probabilities).mean()
    return float(value.nan_to_num())


def _entropy(probabilities: Tensor) -> Tensor:
    return -torch.xlogy(probabilities, probabilities).sum(-1)
