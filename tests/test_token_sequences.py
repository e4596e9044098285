"""Token ids that resemble text: frame, order and topics, and how what is known of them travels."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from command_line import Run
from criterion_networks import Attention, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gaprune.calibration.calibration_set import make_calibration_set
from gaprune.calibration.generator_choice import shares_by_name
from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.calibration.generators.sentences import CLOSED, OPEN_CLASSES, word_classes
from gaprune.calibration.generators.token_sequences import TOKENS, embedding_neighbours, like_text
from gaprune.callbacks import Observer
from gaprune.config import make_settings
from gaprune.errors import InputError
from gaprune.models.input_spec import InputOptions, InputSpec, TokenIds, vocabulary_embeddings
from gaprune.models.sources.optional_packages import import_extra
from gaprune.models.target import Target, load_target, target_from_module
from gaprune.records import Generation
from gaprune.runs.job import make_job
from gaprune.runs.open_directory import open_run
from gaprune.runs.prune import prepare_run
from gaprune.runs.resume import resume
from gaprune.runs.setup import check_settings, make_evaluator, resolve_settings

LIKE_TEXT = ("topics", "zipf-bursts")
ORDINARY = tuple(range(10, 200))
TINY: dict[str, Any] = {
    "sparsity": 0.5,
    "calibration": ("topics",),
    "calibration_count": 16,
    "validation_count": 16,
    "population": 2,
    "offspring": 2,
    "generations": 2,
    "steps": 2,
    "batch": 4,
    "warmup": 0,
    "density_search": 0,
}


def table(vocabulary: int = 200, features: int = 8) -> nn.Embedding:
    """Return an embedding of seeded rows around a common mean."""
    return embedding_of(torch.randn(vocabulary, features, generator=seeded(5)) + 3)


def embedding_of(rows: Tensor) -> nn.Embedding:
    """Return a frozen embedding of these rows."""
    made: nn.Embedding = nn.Embedding.from_pretrained(rows)
    return made


def spec_of(length: int = 12, **known: Any) -> InputSpec:
    """Return token inputs of 200 ids of which 10 and above are ordinary."""
    token_ids = TokenIds(**{"by_frequency": ORDINARY, "start": 1, "end": 2, **known})
    return InputSpec((length,), "tokens", vocabulary=200, token_ids=token_ids)


@pytest.mark.parametrize("name", LIKE_TEXT)
@given(
    length=st.integers(1, 30),
    count=st.integers(1, 9),
    marks=st.tuples(*[st.sampled_from([None, 1, 2])] * 2),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_texts_are_framed_by_the_start_and_end_tokens(
    name: str, length: int, count: int, marks: tuple[int | None, int | None], seed: int
) -> None:
    """Ordinary ids are between; texts too short for both tokens have neither."""
    spec = spec_of(length, start=marks[0], end=marks[1], embedding=table())
    ids = TOKENS[name](spec, count, seeded(seed))
    assert ids.shape == (count, length)
    assert ids.dtype == torch.int64
    before, after = (int(mark is not None) for mark in marks)
    if length <= before + after:
        before = after = 0
    assert ids[:, :before].unique().tolist() == [marks[0]] * before
    assert ids[:, length - after :].unique().tolist() == [marks[1]] * after
    assert set(ids[:, before : length - after].flatten().tolist()) <= set(ORDINARY)


@pytest.mark.parametrize("name", LIKE_TEXT)
def test_common_tokens_come_first_in_the_order(name: str) -> None:
    """Frequent ids are drawn more often, even if the frequency order differs from the id order."""
    order = tuple(reversed(ORDINARY))
    ids = TOKENS[name](spec_of(40, by_frequency=order), 300, seeded())[:, 1:-1]
    counts = ids.flatten().bincount(minlength=200)[list(order)]
    assert counts[:10].sum() > 0.15 * counts.sum()
    assert counts[:10].sum() > 4 * counts[-10:].sum()


@pytest.mark.parametrize("name", LIKE_TEXT)
@pytest.mark.parametrize("known", [None, TokenIds(), TokenIds(embedding=table())])
def test_without_an_order_all_ids_are_drawn(name: str, known: TokenIds | None) -> None:
    """No start or end token is set, and every call prefers other ids."""
    spec, generator = replace(spec_of(30), token_ids=known), seeded(1)
    first, second = (TOKENS[name](spec, 200, generator) for _ in range(2))
    assert len(first.unique()) > 180
    assert first.mode().values.mode() != second.mode().values.mode()


@pytest.mark.parametrize("ranked", [(), ORDINARY])
def test_neighbours_are_those_of_the_largest_cosine(ranked: tuple[int, ...]) -> None:
    """They match the cosine of torch in float64, centred on the mean of the ordinary rows."""
    rows = table()
    ordinary = torch.tensor(ranked or range(200))
    spec = spec_of(by_frequency=ranked, embedding=rows)
    ids = ordinary[torch.randint(len(ordinary), (600,), generator=seeded(2))]
    generator = seeded()
    neighbours = embedding_neighbours(spec, ids, ordinary, 7, generator)
    wide = rows.weight.double()
    centred = wide - wide[ordinary].mean(0)
    cosine = nn.functional.cosine_similarity(
        centred[ids].unsqueeze(1), centred[ordinary].unsqueeze(0), dim=2
    )
    expected = ordinary[cosine.topk(7, dim=1).indices]
    assert torch.equal(neighbours.sort(dim=1).values, expected.sort(dim=1).values)
    assert torch.equal(neighbours[:, 0], ids)
    assert torch.equal(generator.get_state(), seeded().get_state())


def test_neighbours_of_an_unknown_embedding_are_drawn() -> None:
    """Without an embedding, neighbours are random ordinary ids."""
    ordinary = torch.tensor(ORDINARY)
    ids = ordinary[:50]
    neighbours = embedding_neighbours(spec_of(), ids, ordinary, 32, seeded())
    assert neighbours.shape == (50, 32)
    assert torch.equal(neighbours[:, 0], ids)
    assert set(neighbours.flatten().tolist()) <= set(ORDINARY)
    two = embedding_neighbours(spec_of(by_frequency=(10, 11)), ids[:2], ids[:2], 32, seeded())
    assert two.shape == (2, 2)


def test_half_of_a_text_is_about_two_topics() -> None:
    """If ids form clusters, two of the clusters dominate each text."""
    corners = torch.eye(5).repeat_interleave(40, 0)
    rows = embedding_of(corners + 0.01 * torch.randn(200, 5, generator=seeded(3)))
    spec = InputSpec((42,), "tokens", vocabulary=200, token_ids=TokenIds(embedding=rows))

    def of_two(ids: Tensor) -> float:
        cluster = nn.functional.one_hot(ids // 40, 5).sum(1)
        return cluster.topk(2, dim=1).values.sum(1).double().mean().item() / 42

    about = of_two(TOKENS["topics"](spec, 300, seeded()))
    shuffled = TOKENS["topics"](spec, 300, seeded()).flatten()
    mixed = shuffled[torch.randperm(len(shuffled), generator=seeded(1))].view(300, 42)
    assert about > 0.65 > of_two(mixed) + 0.05


def english(length: int = 24, padding: int | None = 0) -> InputSpec:
    """Return token inputs of a small English vocabulary, with `[PAD]` 0, start 1 and end 2."""
    stems = [a + b for a in ("bl", "gr", "st", "tr", "cl") for b in ("onk", "amp", "ust", "ind")]
    verbs = [stem + ending for stem in stems for ending in ("", "s", "ed", "ing")]
    others = [f"qu{stem}{ending}" for stem in stems for ending in ("", "ly")]
    nouns = [f"o{stem}" for stem in stems]
    marks = [".", ",", "?", "'", '"', "s"]
    words = list(
        dict.fromkeys(["[PAD]", "[S]", "[E]", *marks, *sorted(CLOSED), *verbs, *others, *nouns])
    )
    by_word = {word: number for number, word in enumerate(words)}
    ids = TokenIds(tuple(range(9, len(words))), 1, 2, table(len(words)), by_word)
    return InputSpec((length,), "tokens", vocabulary=len(words), token_ids=ids, padding=padding)


def test_sentences_have_words_of_all_classes_and_end_where_they_end() -> None:
    """Lengths differ, an end token follows the last word, and a third are function words."""
    spec = english()
    texts = TOKENS["sentences"](spec, 200, seeded())
    ends = (texts == 2).int().argmax(1)
    assert (texts[:, 0] == 1).all()
    assert len(ends.unique()) > 8
    assert not texts[torch.arange(24) > ends[:, None]].any()
    assert spec.token_ids is not None
    known, words = spec.token_ids.words, texts[texts > 2]
    function_words = torch.isin(words, torch.tensor([known[word] for word in CLOSED]))
    assert 0.3 < function_words.double().mean() < 0.7
    classes = word_classes(known)
    assert all(torch.isin(torch.tensor(classes[name]), words).any() for name in OPEN_CLASSES)


def test_sentences_fill_texts_that_cannot_be_padded() -> None:
    """Where padding is not known more sentences follow; other languages get topics."""
    assert TOKENS["sentences"](english(padding=None), 50, seeded())[:, :-1].ne(2).all()
    assert TOKENS["sentences"](english(padding=None), 50, seeded())[:, -1].eq(2).all()
    spec = spec_of(embedding=table(), words={"haus": 11, "baum": 12})
    assert torch.equal(*(TOKENS[name](spec, 20, seeded()) for name in ("sentences", "topics")))
    names = like_text(english())
    assert names == ("sentences", "zipf-bursts", "topics")
    shares = shares_by_name((), dict.fromkeys(names, 0.0), names[1])
    assert shares == {"sentences": 0.5, "topics": 0.5}
    assert like_text(spec) == LIKE_TEXT


@pytest.mark.parametrize("name", [*LIKE_TEXT, "sentences"])
def test_the_same_seed_draws_the_same_ids(name: str) -> None:
    """Another seed draws other ids."""
    spec = english() if name == "sentences" else spec_of(embedding=table())
    first, same, other = (TOKENS[name](spec, 20, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_facts_name_what_is_known_of_the_ids() -> None:
    """`facts()` is plain data without the embedding, and omits unknown properties."""
    spec = spec_of(embedding=table())
    bare = replace(spec, token_ids=None)
    plain = {name: value for name, value in asdict(bare).items() if name in bare.facts()}
    assert {"shape", "kind", "vocabulary"} <= plain.keys()
    assert bare.facts() == plain
    assert replace(spec, token_ids=TokenIds(embedding=table())).facts() == plain
    assert spec == bare  # the same inputs fit both
    others = [spec_of(start=3), spec_of(end=None), spec_of(by_frequency=ORDINARY[::-1])]
    others += [english(), english(padding=None)]
    texts = {json.dumps(other.facts(), sort_keys=True) for other in (spec, bare, *others)}
    assert len(texts) == 7
    assert spec_of().facts() == spec.facts()


def target_of(ranked: tuple[int, ...] = tuple(range(3, 11))) -> Target:
    """Return a target of 11 ids whose order is known."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        target = target_from_module(Attention(), inputs=InputOptions((9,)))
    assert target.inputs.token_ids is not None
    token_ids = replace(target.inputs.token_ids, by_frequency=ranked, start=1 if ranked else None)
    return replace(target, inputs=replace(target.inputs, token_ids=token_ids))


def test_a_target_knows_its_own_embedding() -> None:
    """It is the layer itself; float inputs and smaller vocabularies have none."""
    target = target_of()
    (layer,) = vocabulary_embeddings(target.model, 11)
    assert target.inputs.token_ids is not None
    assert target.inputs.token_ids.embedding is layer
    fewer = target_from_module(Attention(), inputs=InputOptions((9,), vocabulary=5))
    assert fewer.inputs.token_ids is None
    floats = target_from_module(nn.Linear(3, 2), inputs=InputOptions())
    assert floats.inputs.token_ids is None


@pytest.mark.parametrize(
    ("calibration", "validation", "search", "judge"),
    [
        (("topics",), "auto", "topics 100%", "zipf-bursts"),
        (("procedural",), "auto", "topics 100%", "zipf-bursts"),
        (("auto",), "auto", "topics 100%", "zipf-bursts"),
        (("zipf-bursts",), "auto", "zipf-bursts 100%", "topics"),
        (("procedural",), "topics", "zipf-bursts 100%", "topics"),
        (("procedural",), "uniform", "topics 50%, zipf-bursts 50%", "uniform"),
    ],
)
def test_topics_search_and_bursts_judge(
    calibration: tuple[str, ...], validation: str, search: str, judge: str
) -> None:
    """The provenance names the generators of both, and the tokenizer."""
    chosen = make_settings({**TINY, "calibration": calibration, "validation": validation})
    provenance = make_calibration_set(target_of(), chosen, seeded()).provenance
    assert f"{search} (ids ranked" in provenance.sources[0]
    assert provenance.validation.startswith(f"generated: {judge}")
    assert provenance.level == "procedural"


def test_without_an_order_the_network_still_chooses() -> None:
    """Mutual information ranks uniform ids and bursts; `topics` can still be requested."""
    plan = make_calibration_set(
        target_of(()), make_settings({**TINY, "calibration": ("procedural",)}), seeded()
    )
    assert set(plan.mutual_information) == {"uniform", "zipf-bursts"}
    assert "tokenizer" not in plan.provenance.sources[0]
    plan = make_calibration_set(target_of(()), make_settings(TINY), seeded())
    assert plan.provenance.sources[0].endswith("topics 100%")


def test_the_embedding_travels_once() -> None:
    """A pickled evaluator holds one copy of the embedding, and draws the same inputs."""
    target = target_from_module(wide(), inputs=InputOptions((9,)))
    token_ids = replace(
        target.inputs.token_ids or TokenIds(), by_frequency=tuple(range(3, 5000)), start=1
    )
    target = replace(target, inputs=replace(target.inputs, token_ids=token_ids))
    resolved = resolve_settings(check_settings(make_settings(TINY)), target)
    plan = make_calibration_set(target, resolved.settings, seeded())
    evaluator = make_evaluator(target, resolved, plan)
    packed = ray.cloudpickle.dumps(evaluator)
    assert evaluator.mixture is not None
    bare = replace(evaluator.mixture, spec=replace(target.inputs, token_ids=None))
    assert len(packed) < len(ray.cloudpickle.dumps(replace(evaluator, mixture=bare))) + 30_000
    again = pickle.loads(packed)
    (layer,) = vocabulary_embeddings(again.network.model, 5000)
    assert again.mixture.spec.token_ids.embedding is layer
    assert torch.equal(
        again.draw_batch(8, seeded(3)).inputs, evaluator.draw_batch(8, seeded(3)).inputs
    )


def wide() -> nn.Module:
    """Return a network whose embedding of 5,000 ids is the largest part of an evaluator."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(nn.Embedding(5000, 16), nn.Flatten(), nn.Linear(144, 3))


class Copying(Observer):
    """Copies the run directory after every generation, as a power cut would leave it."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.copies: list[Path] = []

    def generation(self, record: Generation, total: int | None) -> None:
        """Copy it."""
        self.copies.append(self.run.with_name(f"{self.run.name}-{len(self.copies)}"))
        shutil.copytree(self.run, self.copies[-1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a small sentence encoder of 50 ids and its tokenizer."""
    pytest.importorskip("transformers")
    transformers = import_extra("transformers", "hf", "test")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        transformers.BertModel(config).save_pretrained(tmp_path / "net")
    write_tokenizer(tmp_path / "net", lambda number: number)
    return tmp_path / "net"


def write_tokenizer(path: Path, numbered: Callable[[int], int]) -> None:
    """Write a tokenizer of 45 words whose marks are 1 and 2."""
    pieces = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "!": 3, "?": 4}
    pieces |= {f"word{number}": numbered(number) for number in range(5, 50)}
    frame = {"type": "BertProcessing", "cls": ["[CLS]", 1], "sep": ["[SEP]", 2]}
    stated = {"added_tokens": [], "post_processor": frame, "model": {"vocab": pieces}}
    (path / "tokenizer.json").write_text(json.dumps(stated))


def test_a_network_of_transformers_brings_its_tokenizer(folder: Path, run: Run) -> None:
    """The tokenizer sets order and frame of the ids; without its file both are unknown."""
    target = load_target(f"hf:{folder}", inputs=InputOptions(shape=(9,)))
    token_ids = target.inputs.token_ids
    assert token_ids is not None
    assert token_ids.by_frequency == tuple(range(5, 50))
    assert (token_ids.start, token_ids.end) == (1, 2)
    assert token_ids.embedding is target.model.get_submodule("embeddings.word_embeddings")
    drawn = GeneratorMixture(target.inputs, {"topics": 1.0}, target.dtype).draw(5, seeded())
    assert drawn[:, 0].tolist() == [1] * 5
    options = [f"--{key.replace('_', '-')}={TINY[key]}" for key in TINY if key != "calibration"]
    ran = run(
        *("prune", f"hf:{folder}", "--input-shape", "9", "--calibration", "procedural"),
        *("--objective", "relative-error", "--no-save", "--json", *options),
    )
    assert ran.code == 0, ran.err
    provenance = json.loads(ran.out)["provenance"]
    assert "topics 100%" in provenance["sources"][0]
    assert "zipf-bursts" in provenance["validation"]
    (folder / "tokenizer.json").unlink()
    bare = load_target(f"hf:{folder}").inputs.token_ids
    assert bare is not None
    assert not bare.by_frequency


def test_a_stopped_run_draws_the_same_topics_or_is_refused(folder: Path, tmp_path: Path) -> None:
    """A resumed run reads the tokenizer again and refuses a changed one."""
    stated = {**TINY, "target": f"hf:{folder}", "input_shape": "9", "objective": "relative-error"}
    job = make_job(stated)
    path = tmp_path / "run"
    copying = Copying(path)
    with open_run(str(path)) as run_directory:
        target, _ = job.load()
        run = prepare_run(
            target, job.checked, observer=copying, run_directory=run_directory, job=job
        )
        whole = run.run()
    assert copying.copies
    again = resume(copying.copies[0])
    assert all(torch.equal(again.masks[name], mask) for name, mask in whole.masks.items())
    write_tokenizer(folder, lambda number: number if number > 5 else 3)
    with pytest.raises(InputError, match="input: "):
        resume(copying.copies[-1])
