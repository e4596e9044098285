"""Which token ids are alike: cosines between the rows of the network's own embedding."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gaprune.models.input_spec import InputSpec, TokenIds

CHUNK = 256  # ids compared with the whole vocabulary at a time


class _Form(NamedTuple):
    """Of a table of embeddings; the centred rows would take as much room as the table.

    Attributes:
        mean: of its ordinary rows, `[d]`.
        distance: of every row from it, `[vocabulary]`.
        outside: which rows are not ordinary, bool `[vocabulary]`.
    """

    mean: Tensor
    distance: Tensor
    outside: Tensor


_forms: WeakKeyDictionary[TokenIds, _Form] = WeakKeyDictionary()


def neighbours(
    spec: InputSpec, ids: Tensor, ordinary: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Return for each id the ordinary ids whose embeddings are most similar, itself among them.

    Similarity is the cosine of rows around the mean of the ordinary ones. Where nobody knows the
    embedding, the others are drawn at random.

    Args:
        spec: with the embedding in `token_ids.embedding`.
        ids: int64 `[N]`, ordinary ones.
        ordinary: int64 `[M]`; those of `token_ids.by_frequency` where that is known, else all of them.
        count: how many, at most M.
        generator: draws where there is no embedding; with one it is left alone.

    Returns:
        int64 `[N, count]` on the CPU.
    """
    token_ids, count = spec.token_ids, min(count, len(ordinary))
    if token_ids is None or token_ids.embedding is None:
        drawn = torch.randint(len(ordinary), (len(ids), count - 1), generator=generator)
        return torch.cat([ids.unsqueeze(1), ordinary[drawn]], dim=1)
    form = _form_of(token_ids)
    return torch.cat([_nearest(token_ids, form, part, count) for part in ids.split(CHUNK)])


def _nearest(token_ids: TokenIds, form: _Form, ids: Tensor, count: int) -> Tensor:
    table = _rows(token_ids)
    ours = table[ids.to(table.device)] - form.mean
    cosine = (ours @ table.T - (ours @ form.mean).unsqueeze(1)) / form.distance
    return cosine.masked_fill_(form.outside, -torch.inf).topk(count, dim=1).indices.cpu()


def _form_of(token_ids: TokenIds) -> _Form:
    """Return the form of a table, measured once: the network is frozen."""
    if token_ids not in _forms:
        table = _rows(token_ids)
        outside = torch.zeros(len(table), dtype=torch.bool, device=table.device)
        if token_ids.by_frequency:
            outside[:] = True
            outside[torch.tensor(token_ids.by_frequency, device=table.device)] = False
        mean = table[~outside].mean(0)
        distance = torch.cat([(part - mean).norm(dim=1) for part in table.split(CHUNK)])
        _forms[token_ids] = _Form(mean, distance.clamp_min(1e-12), outside)
    return _forms[token_ids]


def _rows(token_ids: TokenIds) -> Tensor:
    rows: Tensor = token_ids.embedding.weight.detach().float()
    return rows
