"""Causal language models: texts as inputs, those that the network writes, and perplexity."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import gaprune
from benchmarks import language_models
from gaprune.calibration.calibration_set import make_calibration_set
from gaprune.calibration.files import read_samples
from gaprune.calibration.inversion.self_text import (
    TEMPERATURES,
    all_logits,
    first_words,
    keep_likely,
    num_drafts,
    write_texts,
)
from gaprune.calibration.samples import Samples
from gaprune.config import make_settings
from gaprune.errors import InputError
from gaprune.evaluation.labelled import check_test
from gaprune.evaluation.objectives import find_objective
from gaprune.evaluation.perplexity import perplexity
from gaprune.models.input_spec import InputOptions
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.sources.tokenizer import take_ids
from gaprune.models.target import Target, load_target, target_from_module
from gaprune.runs.setup import check_settings

SENTENCE = "the cat saw a dog and the dog saw the cat near a tree by the old river"
WORDS = SENTENCE.split()
TEXT = "\n".join(" ".join(WORDS[start:] + WORDS[:start]) for start in range(len(WORDS)))
VOCABULARY = len(set(WORDS)) + 2  # with a start token and one for unknown words
LENGTH = 12


def save_language_model(folder: Path) -> Any:  # noqa: ANN401 - a network of transformers
    """Write a small Llama with random weights and a tokenizer of whole words."""
    transformers = import_extra("transformers", "hf", "test")
    tokenizers = import_extra("tokenizers", "hf", "test")
    entries = {"<s>": 0, "<unk>": 1, **{word: 2 + i for i, word in enumerate(sorted({*WORDS}))}}
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "<s>"}
    level = tokenizers.models.WordLevel(entries, special["unk_token"])
    words = tokenizers.Tokenizer(level)
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)
    tokenizer.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=LENGTH,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a language model, with a text."""
    made = tmp_path_factory.mktemp("language")
    save_language_model(made)
    (made / "text.txt").write_text(TEXT, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def target(folder: Path) -> Target:
    """The language model as a target; tests must not change it."""
    return load_target(f"hf:{folder}")


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator."""
    return torch.Generator().manual_seed(seed)


def test_a_text_is_cut_into_full_rows(folder: Path, target: Target) -> None:
    """Rows hold the ids of the words, one text after the other; what is left over is dropped."""
    ids = read_samples(str(folder / "text.txt"), target.inputs).inputs
    numbers = {word: 2 + i for i, word in enumerate(sorted({*WORDS}))}
    expected = [numbers[word] for word in TEXT.split()]
    assert ids.shape == (len(expected) // LENGTH, LENGTH)
    assert ids.flatten().tolist() == expected[: ids.numel()]


def test_an_encoder_reads_a_text_line_by_line(tmp_path: Path) -> None:
    """Each line is an input of its own, padded."""
    transformers = import_extra("transformers", "hf", "test")
    save_language_model(tmp_path)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    (tmp_path / "text.txt").write_text("the cat\n\nold river near a tree\n")
    target = load_target(f"hf:{tmp_path}")
    ids = read_samples(str(tmp_path / "text.txt"), target.inputs).inputs
    assert ids.shape == (2, target.inputs.shape[0])
    assert (ids != 0).sum(1).tolist() == [2, 5]


def test_perplexity_is_that_of_transformers(folder: Path, target: Target) -> None:
    """The exponential of the loss that transformers computes for the same rows."""
    ids = read_samples(str(folder / "text.txt"), target.inputs).inputs
    transformers = import_extra("transformers", "hf", "test")
    with torch.no_grad():
        loss = transformers.AutoModelForCausalLM.from_pretrained(folder)(ids, labels=ids).loss
    assert perplexity(target.model, ids) == pytest.approx(math.exp(float(loss)), rel=1e-5)


def test_remembered_keys_change_nothing(target: Target) -> None:
    """The surprise of texts written with a cache is that of a pass over the whole texts."""
    starts = first_words(target.model, 0, 6, seeded())
    ids, surprise = write_texts(target.model, starts, LENGTH, seeded(1))
    log_p = all_logits(target.model, ids).log_softmax(2)[:, 1:-1]
    again = -log_p.gather(2, ids[:, 2:, None]).squeeze(2).mean(1)
    torch.testing.assert_close(surprise, again, atol=1e-4, rtol=1e-4)
    assert torch.equal(ids[:, :2], starts)
    repeated, _ = write_texts(target.model, starts, LENGTH, seeded(1))
    assert torch.equal(ids, repeated)


def test_texts_begin_with_the_likeliest_words(target: Target) -> None:
    """Half of the texts begin with different words, the most probable after the start token."""
    starts = first_words(target.model, 0, 8, seeded())
    likely = all_logits(target.model, torch.zeros(1, 1, dtype=torch.int64))[0, 0].topk(4).indices
    assert starts[:, 0].tolist() == [0] * 8
    assert {*likely.tolist()} <= {*starts[:, 1].tolist()}


class Chain(nn.Module):
    """A memoryless language model: token t is followed by t + 1 or t + 2 only."""

    def forward(self, ids: Tensor) -> Tensor:
        first, second = (functional.one_hot((ids + step) % 7, 7) for step in (1, 2))
        return torch.where(first + second > 0, 0.0, -torch.inf) + first * 0.5


def test_tokens_are_drawn_at_each_temperature() -> None:
    """The share of the likelier token is the softmax at that temperature."""
    starts = torch.randint(7, (600, 1), generator=seeded(1))
    ids, _ = write_texts(Chain(), starts, 12, seeded(2))
    steps = ids.diff(dim=1) % 7
    assert {*steps.unique().tolist()} == {1, 2}
    for number, heat in enumerate(TEMPERATURES):
        share = (steps[number :: len(TEMPERATURES)] == 1).double().mean().item()
        assert share == pytest.approx(torch.sigmoid(torch.tensor(0.5 / heat)).item(), abs=0.04)


@given(st.integers(1, 60), st.integers(0, 99))
def test_enough_drafts_remain(count: int, seed: int) -> None:
    """The kept ones are as many as asked for, in their order, without both ends."""
    drafts = num_drafts(count)
    surprise = torch.rand(drafts, generator=seeded(seed))
    kept = keep_likely(torch.arange(drafts)[:, None], surprise).flatten()
    assert count <= len(kept) <= count + 2
    assert (kept.diff() > 0).all()
    left_out = sorted({*range(drafts)} - {*kept.tolist()})
    high = surprise[left_out] > surprise[kept].max() if left_out else torch.zeros(0)
    low = surprise[left_out] < surprise[kept].min() if left_out else torch.zeros(0)
    assert bool((high | low).all()) if left_out else True


def test_the_objective_compares_the_distributions_at_every_place() -> None:
    """KL divergence and agreement are means over all tokens of all texts."""
    teacher, outputs = torch.randn(3, 4, 5, generator=seeded()), torch.randn(3, 4, 5)
    objective = find_objective("auto", teacher, vocabulary=5)
    p = teacher.softmax(2)
    divergence = (p * (p.log() - outputs.log_softmax(2))).sum(2).mean()
    assert float(-objective.fitness(outputs, teacher, None)) == pytest.approx(float(divergence))
    same = (outputs.argmax(2) == teacher.argmax(2)).double().mean()
    assert float(objective.agreement(outputs, teacher, None)) == pytest.approx(float(same))
    assert find_objective("auto", teacher).name == "relative-error"


def test_a_large_vocabulary_leaves_chosen_places(folder: Path) -> None:
    """They are evenly spaced, the last token is one of them, and their logits are the same."""
    transformers = import_extra("transformers", "hf", "test")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(VOCABULARY, (2, LENGTH), generator=seeded())
    with torch.no_grad():
        whole = model(ids).logits
        chosen = take_ids(model, None, positions=3)(ids).logits
    torch.testing.assert_close(chosen, whole[:, [3, 7, 11]])


def test_a_language_model_is_pruned_on_its_own_texts(folder: Path) -> None:
    """`auto` lets it write them; some validate; a text without labels gives the perplexity."""
    target = load_target(f"hf:{folder}")
    settings = make_settings({"sparsity": 0.5, "method": "wanda", "calibration_count": 16})
    made = make_calibration_set(target, settings, seeded())
    assert made.provenance.level == "inversion"
    assert made.search.inputs.shape == (16, LENGTH)
    assert made.search.inputs[:, 0].eq(0).all()
    stored = {tuple(row) for row in made.search.inputs.tolist()}
    assert not stored & {tuple(row) for row in made.validation.inputs.tolist()}
    text = read_samples(str(folder / "text.txt"), target.inputs)
    result = gaprune.prune_target(target, settings, test=text)
    assert result.accuracy is None
    assert result.perplexity is not None
    assert result.perplexity["dense"] == perplexity(target.model, text.inputs)
    pruned = load_target(f"hf:{folder}").masked_copy(result.masks)
    assert result.perplexity["pruned"] == pytest.approx(perplexity(pruned, text.inputs))
    assert result.record()["perplexity"] == result.perplexity


def test_what_cannot_be_is_refused(tmp_path: Path, target: Target) -> None:
    """A text without a tokenizer, too short a text, bytes, and texts of a classifier."""
    (tmp_path / "short.txt").write_text("the cat")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
    for name, message in (("short", r"12 tokens.*shape"), ("bytes", "UTF-8")):
        with pytest.raises(InputError, match=message):
            read_samples(str(tmp_path / f"{name}.txt"), target.inputs)
    classifier = target_from_module(nn.Linear(4, 2), inputs=InputOptions(range=(0, 1)))
    with pytest.raises(InputError, match=r"tokenizer.*npy"):
        read_samples(str(tmp_path / "short.txt"), classifier.inputs)
    ids = torch.zeros(2, LENGTH, dtype=torch.int64)
    labelled = Samples(ids, torch.zeros(2, dtype=torch.int64), "ids")
    with pytest.raises(InputError, match=r"test: .*labels"):
        check_test(labelled, target)
    settings = make_settings({"sparsity": 0.5, "calibration": ("self-text",)})
    with pytest.raises(InputError, match=r"self-text.*procedural"):
        make_calibration_set(classifier, settings, seeded())


@pytest.mark.parametrize("name", language_models.METHODS)
def test_the_methods_of_the_benchmark_exist(name: str) -> None:
    """Their settings pass the check of a run."""
    values = {"sparsity": 0.5, **language_models.METHODS[name]}
    check_settings(make_settings(values), torch.device("cpu"))


@pytest.mark.slow
def test_the_benchmark_compares_methods_on_one_text(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every method has its rows, and all of them the dense perplexity of the scored text."""
    (tmp_path / "text.txt").write_text(f"{TEXT}\n" * 120, encoding="utf-8")
    arguments = ["--model", str(folder), "--text", str(tmp_path / "text.txt"), "--json"]
    arguments += ["--only", "magnitude-layer", language_models.SPARSE_GPT, "--sparsity", "0.5"]
    arguments += ["--calibration", "self-text", "--rows", str(tmp_path / "rows")]
    assert language_models.main(arguments) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["method"] for row in rows] == ["magnitude-layer", language_models.SPARSE_GPT]
    assert rows[0]["dense"] == pytest.approx(rows[1]["dense"])
    assert rows[0]["kl"] > 0
