"""Nothing is computed twice, and every bit is what computing it again would give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray import cloudpickle
from repair_networks import Convolutional, Encoder, Residual, loop_evaluator, target_of
from search_cases import layout_of, run_to_bits, seeded, seeds_of, tiny_evaluator
from torch import Tensor, nn
from torch.nn import functional

from gaprune.evaluation.cache import LRUCache, marks_of
from gaprune.evaluation.cache.trace import cut_up
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.forward_modes import STRICT_FORWARD, GuidedForward, TeacherBatch
from gaprune.evaluation.objectives import OBJECTIVES, agreement
from gaprune.evolution.scoring import Scores
from gaprune.evolution.tasks import ScoreTask
from gaprune.masks.supermask import Layout, masked_weights
from gaprune.models.forward import CHUNK, batched_forward
from gaprune.models.target import load_target
from gaprune.workers import FailedTask, RayWorkers, SerialWorkers, WorkerOptions


class Overwriting(nn.Module):
    """Writes into what earlier layers gave: by a module, by an operator, by a method."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)
        self.third, self.last = nn.Linear(8, 8), nn.Linear(8, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 6]` → `[N, 4]`."""
        early = self.relu(self.first(inputs))
        middle = self.second(early)
        early.add_(middle)
        late = self.third(middle)
        middle.mul_(2)
        return self.last(late + middle + early)  # type: ignore[no-any-return]


class Odd(nn.Module):
    """Reads its parameters itself, out of order; one layer twice, one never.

    Args:
        early: whether what is read last is held from the start.
    """

    def __init__(self, *, early: bool = False) -> None:
        super().__init__()
        self.unused = nn.Linear(6, 6)
        self.last = nn.Parameter(torch.randn(4, 8))
        self.first = nn.Parameter(torch.randn(8, 6))
        self.twice = nn.Linear(8, 8)
        self.register_buffer("shift", torch.ones(8))
        self.early = early

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 6]` → `[N, 4]`."""
        last = self.last.t() if self.early else None
        hidden = self.twice(torch.tanh(functional.linear(inputs, self.first))) + self.shift
        left, right = self.twice(hidden).chunk(2, dim=1)
        return torch.cat([right, left], dim=1) @ (self.last.t() if last is None else last)


class Constant(nn.Module):
    """Makes a tensor of its own, which a trace would put on the network."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 6]` → `[N, 4]`."""
        return self.second(self.first(inputs) * torch.arange(8))  # type: ignore[no-any-return]


class Branching(nn.Module):
    """Looks at values, so that it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 6]` → `[N, 4]`."""
        hidden = self.first(inputs)
        hidden = -hidden if hidden.sum() > 0 else hidden
        return self.second(hidden)  # type: ignore[no-any-return]


class Pretending(nn.Module):
    """Answers otherwise while it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 6]` → `[N, 4]`."""
        tracing = isinstance(inputs, torch.fx.Proxy)
        return self.second(self.first(inputs) * (2 if tracing else 3))  # type: ignore[no-any-return]


def strict(
    build: Callable[[], nn.Module], shape: tuple[int, ...], *prune_also: str, count: int = 150
) -> Evaluator:
    """Return a evaluator in float32 on which candidates answer as they are."""
    evaluator = loop_evaluator(target_of(build, shape, *prune_also, double=False), count=count)
    return replace(evaluator, forward_mode=STRICT_FORWARD)


def of_zoo(name: str) -> Evaluator:
    """Return a evaluator of a network of the zoo: noise, two chunks, the first rung one of them."""
    target = load_target(name)
    noise = torch.rand((CHUNK + 5, *target.inputs.shape), generator=seeded())
    search = TeacherBatch(noise, batched_forward(target.model, noise), None)
    return Evaluator(
        model=target.model,
        weights=target.weights,
        layout=target.layout,
        objective=OBJECTIVES["kl"],
        search=search,
        validation=search,
        mixture=None,
        gradient_inputs=None,
        gradient_share=0.0,
        rungs=(CHUNK, CHUNK + 5),
    )


EVALUATORS: dict[str, Callable[[], Evaluator]] = {
    "matrices": tiny_evaluator,
    "convolutions": lambda: strict(Convolutional, (2, 6, 6)),
    "residual": lambda: strict(Residual, (2, 6, 6)),
    "attention": lambda: strict(Encoder, (5, 8)),
    "in place": lambda: strict(Overwriting, (6,)),
    "odd": lambda: strict(Odd, (6,), "last", "first"),
    "weights held": lambda: strict(lambda: Odd(early=True), (6,), "last", "first"),
    "constant": lambda: strict(Constant, (6,)),
    "untraceable": lambda: strict(Branching, (6,)),
    "wrongly traced": lambda: strict(Pretending, (6,)),
    "after repair": lambda: loop_evaluator(target_of(Convolutional, (2, 6, 6))),
    "bfloat16": lambda: replace(strict(Convolutional, (2, 6, 6)), precision="bfloat16"),
    "mobile-student": lambda: of_zoo("mobile-student"),
    "mnist-cnn": lambda: of_zoo("mnist-cnn"),
    "lenet": lambda: of_zoo("lenet"),
}
UNCUT = ("weights held", "constant", "untraceable", "wrongly traced", "after repair")
EARLY = ("matrices", "convolutions", "residual", "mobile-student", "lenet")
"""Networks that are cut behind their first layer, too."""


def mask_of(layout: Layout, genes: Sequence[int]) -> Tensor:
    """Return a mask whose every layer is one of few: layers with equal genes are equal."""
    parts = [
        torch.rand(size, generator=seeded(31 * index + gene)) < 0.6
        for index, (size, gene) in enumerate(zip(layout.sizes, genes, strict=True))
    ]
    return torch.cat(parts)


def relatives(layout: Layout, count: int, seed: int = 0) -> list[Tensor]:
    """Return masks of random families: each takes its first layers from an earlier one."""
    generator, layers = seeded(seed), len(layout.sizes)
    family = [[0] * layers]
    while len(family) < count:
        parent = family[int(torch.randint(len(family), (), generator=generator))]
        at = int(torch.randint(layers, (), generator=generator))
        rest = torch.randint(3, (layers - at,), generator=generator).tolist()
        family.append([*parent[:at], *rest])
    return [mask_of(layout, genes) for genes in family]


def anew(evaluator: Evaluator, mask: Tensor, rung: int) -> float:
    """Return what a mask scores on a evaluator that knows nothing."""
    return replace(evaluator).fitness(mask, rung)


@pytest.mark.parametrize("name", EVALUATORS)
def test_what_is_known_has_the_bits_of_computing_it_again(name: str) -> None:
    """Masks with common first layers, some of them equal, on both rungs in any order."""
    evaluator, generator = EVALUATORS[name](), seeded(5)
    count = 10 if len(evaluator.search.inputs) == CHUNK + 5 else 30
    for mask in relatives(evaluator.layout, count):
        rungs = [(0, -1), (-1, 0), (0,), (-1,)][int(torch.randint(4, (), generator=generator))]
        for rung in rungs:
            assert evaluator.fitness(mask, rung) == anew(evaluator, mask, rung)
    assert (evaluator.known.prefixes.size == 0) == (name in UNCUT)


@contextmanager
def rows_into(module: nn.Module) -> Iterator[list[int]]:
    """Count the inputs of every pass through a module."""
    seen: list[int] = []
    hook = module.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    try:
        yield seen
    finally:
        hook.remove()


def test_a_mask_is_scored_once_per_rung() -> None:
    """The second time, nothing passes through the network and the objective is not asked."""
    asked: list[int] = []

    def counted(outputs: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
        asked.append(len(outputs))
        return agreement(outputs, teacher, labels)

    evaluator = tiny_evaluator(replace(OBJECTIVES["agreement"], fitness=counted))
    mask = mask_of(evaluator.layout, (1, 1, 1))
    with rows_into(evaluator.model[0]) as rows:  # type: ignore[index]
        found = [evaluator.fitness(mask, rung) for rung in (0, 0, -1, 1, 0)]
    assert asked == [16, 64]
    assert sum(rows) == 16 + 64  # a rung of less than a chunk is computed anew in a larger one
    assert found[0] == found[1] == found[4]
    assert found[2] == found[3]


def test_who_has_raced_answers_to_the_other_calibration_alone() -> None:
    """Whole chunks of the first rung are not passed again on the last one."""
    evaluator = replace(strict(Convolutional, (2, 6, 6), count=200), rungs=(CHUNK + 3, 200))
    mask = mask_of(evaluator.layout, (1, 1, 1))
    with rows_into(evaluator.model) as rows:
        raced, whole = evaluator.fitness(mask, 0), evaluator.fitness(mask, 1)
    assert rows == [CHUNK, 3, CHUNK, CHUNK, 200 - 3 * CHUNK]
    assert (raced, whole) == (anew(evaluator, mask, 0), anew(evaluator, mask, 1))


@pytest.mark.parametrize("name", EARLY)
def test_first_layers_pass_once_more_and_then_no_more(name: str) -> None:
    """From the third mask on that shares all layers but the last, the first layer is left out."""
    evaluator = EVALUATORS[name]()
    last = len(evaluator.layout.sizes) - 1
    first = next(
        one for one in evaluator.model.modules() if isinstance(one, (nn.Linear, nn.Conv2d))
    )
    passed = []
    for gene in range(5):
        mask = mask_of(evaluator.layout, [*[0] * last, gene])
        with rows_into(first) as rows:
            assert evaluator.fitness(mask, 0) == anew(replace(evaluator), mask, 0)
        passed.append(len(rows))
    alone = -(-evaluator.rungs[0] // CHUNK)  # by the evaluator that knows nothing
    assert passed[0] == 2 * alone
    assert passed[2:] == [alone] * 3


def test_masks_that_share_no_first_layer_hold_nothing() -> None:
    """Their network is not even traced."""
    evaluator = EVALUATORS["convolutions"]()
    for seed in range(6):
        mask = torch.rand(evaluator.layout.total, generator=seeded(seed)) < 0.5
        evaluator.fitness(mask, 0)
        evaluator.fitness(mask, -1)
    assert evaluator.known.prefixes.size == 0
    assert evaluator.known.prefixes._is_new


@pytest.mark.parametrize("build", [Odd, Constant, Branching, Pretending, Overwriting])
def test_tracing_leaves_the_network_as_it_is(build: Callable[[], nn.Module]) -> None:
    """Its attributes, tensors and answers, whether it can be traced or not."""
    evaluator = strict(build, (6,))
    model, names = evaluator.model, set(vars(evaluator.model))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = masked_weights(
        evaluator.weights,
        evaluator.layout.split(mask_of(evaluator.layout, [1] * len(evaluator.layout.sizes))),
    )
    cut_up(model, evaluator.weights, kept, evaluator.search.inputs[:8], 1e9)
    assert set(vars(model)) == names
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert torch.equal(batched_forward(model, evaluator.search.inputs), evaluator.search.teacher)


def test_no_cut_is_made_where_something_is_overwritten_later() -> None:
    """Of the three, only those whose values stay: a held value that changes would be wrong."""
    evaluator = EVALUATORS["in place"]()
    kept = masked_weights(
        evaluator.weights, evaluator.layout.split(mask_of(evaluator.layout, [1] * 4))
    )
    stages = cut_up(evaluator.model, evaluator.weights, kept, evaluator.search.inputs[:8], 1e9)
    assert stages is not None
    assert {cut.depth for cut in stages.cuts} == {3}


def test_what_is_known_does_not_travel() -> None:
    """A evaluator is sent without it, and as small as a new one."""
    evaluator = tiny_evaluator()
    for mask in relatives(evaluator.layout, 20):
        evaluator.fitness(mask)
    assert len(evaluator.known.scores) > 1
    sent = cloudpickle.dumps(evaluator)
    assert len(sent) == len(cloudpickle.dumps(replace(evaluator)))
    assert len(cloudpickle.loads(sent).known.scores) == 0


def test_benches_of_other_settings_know_nothing_of_each_other() -> None:
    """One mask, scored after repair and as it is, in turn."""
    target = target_of(Convolutional, (2, 6, 6))
    evaluator = loop_evaluator(target)
    mask = mask_of(evaluator.layout, (1, 1, 1))
    expected = [anew(evaluator, mask, 0), anew(evaluator.strict, mask, 0)]
    assert expected[0] != expected[1]
    guided = replace(evaluator, forward_mode=GuidedForward(evaluator.forward_mode))  # type: ignore[arg-type]
    for _ in range(2):
        assert [guided.repaired.fitness(mask, 0), guided.fitness(mask, 0)] == expected
        assert [evaluator.fitness(mask, 0), evaluator.strict.fitness(mask, 0)] == expected
    assert [
        len(one.known.scores) for one in (evaluator, guided, guided.repaired, evaluator.strict)
    ] == [
        1,
        1,
        1,
        0,
    ]


def test_objectives_may_write_into_what_they_are_given() -> None:
    """What is held of the answers stays as it was."""

    def careless(outputs: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
        value = agreement(outputs, teacher, labels)
        outputs.zero_()
        return value

    evaluator = replace(strict(Convolutional, (2, 6, 6), count=2 * CHUNK), rungs=(CHUNK, 2 * CHUNK))
    evaluator = replace(evaluator, objective=replace(OBJECTIVES["agreement"], fitness=careless))
    mask = mask_of(evaluator.layout, (1, 1, 1))
    evaluator.fitness(mask, 0)
    assert evaluator.fitness(mask, 1) == anew(evaluator, mask, 1)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 5)), max_size=40))
def test_memory_forgets_what_was_used_least_recently(calls: list[tuple[bool, int, int]]) -> None:
    """Against a list in the order of use, the latest last."""
    memory, order, room = LRUCache[int, int](10), list[tuple[int, int]](), 10
    for writes, key, size in calls:
        kept = [pair for pair in order if pair[0] == key]
        if writes:
            memory.put(key, size, size)
            order = [pair for pair in order if pair[0] != key] + [(key, size)]
            while sum(one for _, one in order) > room:
                order.pop(0)
        else:
            assert memory.get(key) == (kept[0][1] if kept else None)
            order = [pair for pair in order if pair[0] != key] + kept
    assert memory.size == sum(size for _, size in order) <= room
    assert len(memory) == len(order)


def test_what_is_too_large_is_not_remembered_and_drives_out_nothing() -> None:
    """Also where it takes the place of something small."""
    memory = LRUCache[str, str](3)
    memory.put("small", "a", 2)
    memory.put("large", "b", 4)
    assert (memory.get("small"), memory.get("large"), memory.size) == ("a", None, 2)
    memory.put("small", "c", 5)
    assert (memory.get("small"), memory.size) == (None, 0)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.data())
def test_marks_tell_masks_apart_layer_by_layer(sizes: list[int], data: st.DataObject) -> None:
    """Equal up to a layer if and only if the masks are."""
    layout = layout_of(sizes)
    flags = st.lists(st.booleans(), min_size=layout.total, max_size=layout.total)
    one = torch.tensor(data.draw(flags))
    other = one.clone()
    at = data.draw(st.integers(0, layout.total - 1))
    other[at] = not other[at]
    pairs = zip(marks_of(one, layout), marks_of(other, layout), layout.slices, strict=True)
    assert [a == b for a, b, _ in pairs] == [part.stop <= at for part in layout.slices]
    assert marks_of(one, layout) == marks_of(one.clone(), layout)


def test_workers_are_asked_once_about_a_mask() -> None:
    """Not again on the same rung, not twice at once; on another rung or after repair they are."""
    evaluator = loop_evaluator(target_of(Convolutional, (2, 6, 6)))
    people, asked = seeds_of(evaluator, 100, 3), list[int]()

    def run(tasks: Sequence[Any]) -> list[Any]:
        asked.append(len(tasks))
        return [replace(task, repaired=False).run(evaluator) for task in tasks]

    scores = Scores(run, 1)
    twice = [*people, people[0]]
    expected = [anew(evaluator, one.mask, 0) for one in twice]
    assert scores.of(twice, 0) == expected
    assert scores.of(twice[::-1], 0) == expected[::-1]
    scores.of(people, -1)
    scores.of(people, 0, repaired=True)
    assert asked == [3, 3, 3]


def test_one_that_was_lost_is_tried_again() -> None:
    """Only numbers are remembered."""
    person, answers_ = seeds_of(tiny_evaluator(), 60, 1), [FailedTask(3, "its process died"), 0.5]
    scores = Scores(lambda tasks: [answers_.pop(0) for _ in tasks], 1)
    assert isinstance(scores.of(person, 0)[0], FailedTask)
    assert scores.of(person, 0) == [0.5]
    assert scores.of(person, 0) == [0.5]


def test_actors_and_this_process_give_the_same_bits(ray_session: None) -> None:
    """Whoever knows what: relatives, twice each, on both rungs."""
    evaluator = EVALUATORS["residual"]()
    tasks = [
        ScoreTask.of(mask, rung) for mask in relatives(evaluator.layout, 8) for rung in (0, -1, 0)
    ]
    here = run_to_bits(SerialWorkers(evaluator), tasks)
    assert here == [
        anew(evaluator, mask, rung)
        for mask in relatives(evaluator.layout, 8)
        for rung in (0, -1, 0)
    ]
    with RayWorkers(evaluator, WorkerOptions(2)) as actors:
        assert run_to_bits(actors, tasks) == here
