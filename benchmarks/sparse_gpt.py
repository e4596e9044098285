"""SparseGPT (Frantar & Alistarh 2023): what pruning costs if the kept weights may change.

gaprune keeps weights frozen; this is the row that says what that costs on language models.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

DAMPING = 0.01  # of the mean diagonal of the Gram matrix, as in the authors' code
BLOCK = 128  # columns whose masks are chosen together
TEXTS = 4  # per pass


def prune_layer(weight: Tensor, gram: Tensor, sparsity: float, group: int | None = None) -> Tensor:
    """Return weights `[outputs, inputs]` with a part of each block of columns removed.

    Columns are removed from left to right; each removal is made up for by the columns to its right,
    by the inverse of the Gram matrix `[inputs, inputs]` of the layer's inputs. `group` is 4 for two
    of four, else the fraction `sparsity` of every block is removed, the smallest w² ÷ d² first.
    """
    size = len(gram)
    damped = gram + DAMPING * gram.diagonal().mean() * torch.eye(size)
    dead = gram.diagonal() == 0
    damped[dead, dead] = 1.0
    weight = weight.clone()
    weight[:, dead] = 0.0
    # the upper Cholesky factor of the inverse holds the row of every step of elimination
    inverse = torch.linalg.cholesky(
        torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True
    )
    for begin in range(0, size, BLOCK):
        end = min(begin + BLOCK, size)
        block, factor = weight[:, begin:end].clone(), inverse[begin:end, begin:end]
        errors = torch.zeros_like(block)
        removed = torch.zeros_like(block, dtype=torch.bool)
        if group is None:
            scores = block.square() / factor.diagonal().square()
            count = int(sparsity * scores.numel())
            if count:
                removed = scores <= scores.flatten().kthvalue(count).values
        for column in range(end - begin):
            if group is not None and column % group == 0:
                four = slice(column, column + group)
                scores = block[:, four].square() / factor.diagonal()[four].square()
                removed[:, four].scatter_(
                    1, scores.topk(group // 2, largest=False).indices, value=True
                )
            kept = block[:, column].masked_fill(removed[:, column], 0.0)
            error = (block[:, column] - kept) / factor[column, column]
            block[:, column] = kept
            block[:, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
            errors[:, column] = error
        weight[:, begin:end] = block
        weight[:, end:] -= errors @ inverse[begin:end, end:]
    return weight


class _Captured(Exception):  # noqa: N818 - it carries inputs, and is no error
    """The inputs of the first block."""


@torch.no_grad()
def sparse_gpt(model: nn.Module, ids: Tensor, sparsity: float, group: int | None) -> None:
    """Prune the linear layers of a stack of blocks in place, on texts `[N, L]`, block by block.

    The Gram matrices of a block are taken on its inputs from the blocks that are already pruned.
    """
    stack = next(part for part in model.modules() if isinstance(part, nn.ModuleList))
    passes = [_inputs_of(stack[0], model, texts) for texts in ids.split(TEXTS)]
    for block in stack:
        layers = [layer for layer in block.modules() if isinstance(layer, nn.Linear)]
        sizes = {layer: layer.in_features for layer in layers}
        grams: dict[nn.Module, Tensor] = {layer: torch.zeros(n, n) for layer, n in sizes.items()}
        hooks = [layer.register_forward_pre_hook(partial(_collect, grams)) for layer in layers]
        for arguments, named in passes:
            block(*arguments, **named)
        for hook in hooks:
            hook.remove()
        for layer in layers:
            layer.weight.copy_(prune_layer(layer.weight, grams[layer], sparsity, group))
        passes = [((block(*arguments, **named),), named) for arguments, named in passes]


def _collect(grams: Mapping[nn.Module, Tensor], layer: nn.Module, inputs: tuple[Tensor]) -> None:
    rows = inputs[0].flatten(0, -2).float()
    grams[layer].addmm_(rows.T, rows)


def _inputs_of(block: nn.Module, model: nn.Module, ids: Tensor) -> tuple[Any, dict[str, Any]]:
    def stop(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        raise _Captured(arguments, named)

    hook = block.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(ids)
    except _Captured as captured:
        arguments, named = captured.args
        return arguments, named
    finally:
        hook.remove()
    raise AssertionError
