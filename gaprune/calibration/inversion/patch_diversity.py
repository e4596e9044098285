"""Diversity of patches: vision transformers tell objects from background, also in made inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from gaprune.models.input_spec import InputSpec

PATCHES = 16  # of every image, evenly spaced: all pairs of 197 patches would take gigabytes
BANDWIDTH = 0.1  # of the Gaussian kernels, in units of the cosine
POINTS = 40  # of the density; the outer ones are beyond 1: a cut kernel would favour cosines of 1
LIMIT = 1 + 3 * BANDWIDTH
_NAMES = ("attention", "attn")  # in the class names of attention modules


@contextmanager
def attention_outputs(model: nn.Module, spec: InputSpec) -> Iterator[list[Tensor]]:
    """Collect what attention over the patches of images puts out, `[N, patches, features]`.

    Every forward pass inside the block adds one tensor per module to the list, outer modules only;
    nothing for other inputs and networks.
    """
    collected: list[Tensor] = []

    def record(_module: nn.Module, _args: object, output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor) and first.ndim == 3 and first.shape[1] > 2:
            collected.append(first)

    outer: tuple[str, ...] = ("\0",)
    with ExitStack() as hooks:
        for path, module in model.named_modules() if spec.kind == "image" else ():
            kind = type(module).__name__.lower()
            if path and any(name in kind for name in _NAMES) and not path.startswith(outer):
                hooks.enter_context(module.register_forward_hook(record))
                outer = (*outer, f"{path}.")
        yield collected


def similarity_entropy(patches: Tensor) -> Tensor:
    """Return the entropy of the cosines between patches `[N, patches, features]`, summed over N.

    Patch similarity entropy of PSAQ-ViT (Li et al. 2022, section 3.2), in nats: the differential
    entropy of a kernel density estimate. It is high where some patches are alike and others differ,
    as in real images, and low for noise, whose patches are all alike.
    """
    count = min(PATCHES, patches.shape[1])
    spaced = torch.arange(count, device=patches.device) * patches.shape[1] // count
    chosen = functional.normalize(patches[:, spaced], dim=2)
    rows, columns = torch.triu_indices(count, count, 1, device=patches.device)
    cosines = (chosen @ chosen.mT)[:, rows, columns]
    points = torch.linspace(-LIMIT, LIMIT, POINTS, dtype=cosines.dtype, device=cosines.device)
    kernels = torch.exp(-((points - cosines[..., None]) / BANDWIDTH).square() / 2)
    density = kernels.mean(1) / (BANDWIDTH * (2 * torch.pi) ** 0.5)
    # far from all cosines the density is 0, and its logarithm has no gradient
    logarithm = (density + torch.finfo(density.dtype).eps).log()
    entropy: Tensor = -(density * logarithm).sum() * 2 * LIMIT / (POINTS - 1)
    return entropy
