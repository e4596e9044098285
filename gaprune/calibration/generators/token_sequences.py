"""Procedural token ids: uniform, Zipf-distributed with repeated n-grams, topics, sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from random import Random
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gaprune.calibration.generators.random_draws import InputGenerator, draw_bool
from gaprune.calibration.generators.sentences import OPEN_CLASSES, word_classes, write_text
from gaprune.models.input_spec import InputSpec, TokenIds

LONGEST_NGRAM = 8
# Transition probabilities of the Markov chain that switches copying on and keeps it on.
P_ENTER, P_STAY = 0.1, 0.85
TOPICS = 2  # per sequence
NEIGHBOURS = 32  # ids that belong to a topic
P_ON_TOPIC = 0.5  # that a token belongs to a topic of its sequence
RELATED = 64  # the same of a sentence, whose grammar leaves some out
P_UNIFORM = 0.5  # that another word of a sentence is drawn uniformly from its class
ZIPF_SHIFT = 3.7
P_RARE = 0.7  # that a topic is drawn uniformly, not as a common token is
CHUNK = 256  # ids compared with the whole vocabulary at a time


def uniform_ids(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw int64 ids `[count, *spec.shape]`, uniform below the vocabulary size."""
    return torch.randint(spec.vocabulary, (count, *spec.shape), generator=generator)


def zipf_bursts(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw int64 ids `[count, *spec.shape]` with the statistics of running text.

    New tokens follow the Zipf–Mandelbrot law p(rank) ∝ 1/(rank + 2.7). `spec.token_ids` gives the
    ranks of the ids, and the ids that begin and end a text; without it, ranks are permuted at
    random in every call, and nothing frames the text. A Markov chain with two states switches
    copying on and off. While it is on, a row repeats the token n positions before (n is fixed per
    row, up to 8), so that n-grams come in bursts.
    """
    length = _text_length(spec)
    ids = _zipf_ids(spec, count, length, generator)[0]
    copying = _markov_switch(count, length, generator)
    lags = torch.randint(1, LONGEST_NGRAM + 1, (count, 1), generator=generator)
    for position in range(1, length):
        source = position - lags
        repeated = ids.gather(1, source.clamp(min=0))
        copied = copying[:, position : position + 1] & (source >= 0)
        present = ids[:, position : position + 1]
        ids[:, position : position + 1] = torch.where(copied, repeated, present)
    return _framed(spec, ids)


def topics(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw int64 ids `[count, *spec.shape]`: texts about two topics each.

    As in `zipf_bursts`, tokens follow the Zipf–Mandelbrot law between the ids that frame a text.
    Then half of them are replaced by neighbours of two topic tokens: the 32 ids with the most
    similar embeddings, including the topic itself, each equally likely. Embeddings of a trained
    network put related words together (Mikolov et al. 2013, section 4), so a sequence has a
    subject, as a sentence has. Seven of ten topics are uniform over all ordinary ids, the others
    are drawn as common tokens are. Without an embedding, the neighbours are random ids.
    """
    length = _text_length(spec)
    ids, ordered = _zipf_ids(spec, count, length, generator)
    related = _about_topics(spec, count, ordered, NEIGHBOURS, generator)
    about = related.gather(1, torch.randint(related.shape[1], ids.shape, generator=generator))
    return _framed(spec, torch.where(draw_bool(generator, P_ON_TOPIC, *ids.shape), about, ids))


def sentences(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Draw int64 ids `[count, *spec.shape]`: texts of the grammar in `sentences.RULES`.

    Half of the words belong to two topics, as in `topics`, if a topic has words of the class that
    the grammar asks for. A quarter are drawn like the common words of their class, and a quarter
    uniformly. Lengths differ: short texts are padded, or followed by more sentences where
    padding is not known. For a vocabulary that is not English these are `topics`.
    """
    classes = _classes_of(spec)
    if not classes:
        return topics(spec, count, generator)
    (before, after), length = _frame(spec), _text_length(spec)
    by_id: dict[int, list[str]] = {}
    for name in OPEN_CLASSES:
        for number in classes[name]:
            by_id.setdefault(number, []).append(name)
    related = _about_topics(spec, count, torch.tensor(sorted(by_id)), RELATED, generator).tolist()
    random = Random(int(torch.randint(2**62, (), generator=generator)))
    texts = torch.zeros(count, math.prod(spec.shape), dtype=torch.int64)
    for row, near in zip(texts, related, strict=True):
        about: dict[str, list[int]] = {}
        for number in near:
            for name in by_id.get(number, ()):
                about.setdefault(name, []).append(number)
        choose = partial(_choose_word, random, classes, about)
        ids = write_text(random, choose)
        while spec.padding is None and len(ids) < length:
            ids += write_text(random, choose)
        ids = [*before, *ids[:length], *after]
        row[:] = spec.padding or 0
        row[: len(ids)] = torch.tensor(ids)
    return texts.view(count, *spec.shape)


SENTENCES = "sentences"
TOKENS: dict[str, InputGenerator] = {
    "uniform": uniform_ids,
    "zipf-bursts": zipf_bursts,
    "topics": topics,
    SENTENCES: sentences,
}

LIKE_TEXT = ("topics", "zipf-bursts")  # for vocabularies with known ranks, best first
UNRANKED = ("uniform", "zipf-bursts")  # with random ranks, `topics` leads to worse masks


def like_text(spec: InputSpec) -> tuple[str, ...]:
    """Return the generators for a vocabulary with known ranks; the second one validates.

    English is made of `sentences` and `topics`: masks for sentences alone keep the embeddings, but
    less of the differences between them, which rare words make.
    """
    return (SENTENCES, *LIKE_TEXT[::-1]) if _classes_of(spec) else LIKE_TEXT


def is_ranked(spec: InputSpec) -> bool:
    """Return whether it is known which token ids are common."""
    return spec.token_ids is not None and bool(spec.token_ids.by_frequency)


def _classes_of(spec: InputSpec) -> dict[str, list[int]]:
    if spec.token_ids is None:
        return {}
    if spec.token_ids not in _classes:
        _classes[spec.token_ids] = word_classes(spec.token_ids.words)
    return _classes[spec.token_ids]


def _choose_word(
    random: Random, classes: Mapping[str, list[int]], about: Mapping[str, list[int]], name: str
) -> int:
    """Return the id of a word of a class; `about` are words of the topics by class."""
    words = classes[name]
    if name not in OPEN_CLASSES:
        return random.choice(words)
    if name in about and random.random() < P_ON_TOPIC:
        return random.choice(about[name])
    if random.random() < P_UNIFORM:
        return random.choice(words)
    # the law of `_zipf_ranks`, inverted for real ranks
    rank = ZIPF_SHIFT * ((len(words) / ZIPF_SHIFT + 1) ** random.random() - 1)
    return words[min(int(rank), len(words) - 1)]


def _about_topics(
    spec: InputSpec, count: int, ordered: Tensor, size: int, generator: torch.Generator
) -> Tensor:
    """Return `size` neighbours of each of two topics per text, `[count, 2 · size]`."""
    common = ordered[_zipf_ranks(len(ordered), count * TOPICS, generator)]
    uniform = ordered[torch.randint(len(ordered), (count * TOPICS,), generator=generator)]
    topic = torch.where(draw_bool(generator, P_RARE, count * TOPICS), uniform, common)
    return embedding_neighbours(spec, topic, ordered, size, generator).view(count, -1)


def _zipf_ids(
    spec: InputSpec, count: int, length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw ids `[count, length]` by the law; also return all possible ids, most common first."""
    if spec.token_ids is not None and is_ranked(spec):
        ordered = torch.tensor(spec.token_ids.by_frequency, dtype=torch.int64)
        ranks = _zipf_ranks(len(ordered), count * length, generator)
    else:
        ranks = _zipf_ranks(spec.vocabulary, count * length, generator)
        ordered = torch.randperm(spec.vocabulary, generator=generator)
    return ordered[ranks].view(count, length), ordered


def _zipf_ranks(size: int, draws: int, generator: torch.Generator) -> Tensor:
    """Draw ranks `[draws]` below `size` by inverting the cumulative distribution."""
    cumulative = (1 / (torch.arange(1, size + 1, dtype=torch.float64) + 2.7)).cumsum(0)
    points = torch.rand(draws, generator=generator, dtype=torch.float64) * cumulative[-1]
    return torch.searchsorted(cumulative, points, right=True).clamp_(max=size - 1)


def _frame(spec: InputSpec) -> tuple[list[int], list[int]]:
    """Return the ids before and after a text; none if they would leave no position for it."""
    if spec.token_ids is None:
        return [], []
    frame = spec.token_ids.start, spec.token_ids.end
    before, after = ([] if id_ is None else [id_] for id_ in frame)
    fits = math.prod(spec.shape) > len(before) + len(after)
    return (before, after) if fits else ([], [])


def _text_length(spec: InputSpec) -> int:
    return math.prod(spec.shape) - sum(map(len, _frame(spec)))


def _framed(spec: InputSpec, ids: Tensor) -> Tensor:
    before, after = (
        torch.tensor(frame, dtype=torch.int64).expand(len(ids), -1) for frame in _frame(spec)
    )
    return torch.cat([before, ids, after], dim=1).view(len(ids), *spec.shape)


def _markov_switch(count: int, length: int, generator: torch.Generator) -> Tensor:
    enter = draw_bool(generator, P_ENTER, count, length)
    stay = draw_bool(generator, P_STAY, count, length)
    on = torch.zeros(count, length, dtype=torch.bool)
    for position in range(1, length):
        on[:, position] = torch.where(on[:, position - 1], stay[:, position], enter[:, position])
    return on


class _EmbeddingGeometry(NamedTuple):
    """Mean `[d]` of the ordinary rows of an embedding, distance of every row from it, other rows.

    The centred rows are not stored: they would need as much memory as the table.
    """

    mean: Tensor
    distance: Tensor
    is_special: Tensor


# computed once per vocabulary
_classes: WeakKeyDictionary[TokenIds, dict[str, list[int]]] = WeakKeyDictionary()
_geometries: WeakKeyDictionary[TokenIds, _EmbeddingGeometry] = WeakKeyDictionary()


def embedding_neighbours(
    spec: InputSpec, ids: Tensor, ordinary: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Return for each id the ordinary ids with the most similar embeddings, including itself.

    Similarity is the cosine of rows of `spec.token_ids.embedding` around the mean of the ordinary
    rows. Without an embedding, the other ids are drawn at random. For `ids` `[N]` among `ordinary`
    `[M]` (`token_ids.by_frequency` if known, else all) the result is int64 `[N, count]` on the CPU;
    `count` is at most M.
    """
    token_ids, count = spec.token_ids, min(count, len(ordinary))
    if token_ids is None or token_ids.embedding is None:
        drawn = torch.randint(len(ordinary), (len(ids), count - 1), generator=generator)
        return torch.cat([ids.unsqueeze(1), ordinary[drawn]], dim=1)
    table: Tensor = token_ids.embedding.weight.detach().float()
    mean, distance, is_special = _geometry_of(token_ids, table)
    neighbours = []
    for chunk in ids.split(CHUNK):
        rows = table[chunk.to(table.device)] - mean
        # (a − m)·(b − m) = (a − m)·b − (a − m)·m needs no centred copy of the table.
        cosine = (rows @ table.T - (rows @ mean).unsqueeze(1)) / distance
        cosine.masked_fill_(is_special, -torch.inf)
        neighbours.append(cosine.topk(count, dim=1).indices.cpu())
    return torch.cat(neighbours)


def _geometry_of(token_ids: TokenIds, table: Tensor) -> _EmbeddingGeometry:
    if token_ids not in _geometries:  # the network is frozen
        is_special = torch.zeros(len(table), dtype=torch.bool, device=table.device)
        if token_ids.by_frequency:
            is_special[:] = True
            is_special[torch.tensor(token_ids.by_frequency, device=table.device)] = False
        mean = table[~is_special].mean(0)
        distance = torch.cat([(chunk - mean).norm(dim=1) for chunk in table.split(CHUNK)])
        _geometries[token_ids] = _EmbeddingGeometry(mean, distance.clamp_min(1e-12), is_special)
    return _geometries[token_ids]
