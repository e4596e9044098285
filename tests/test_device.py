"""Where candidates are tried: what is chosen, and that the whole evaluator goes there.

Of a GPU only a machine with one can tell. A second device on the CPU (`second_device.py`) shows
everywhere that nothing is left behind, and gives the CPU's own bits to compare with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Run
from repair_networks import (
    Convolutional,
    Encoder,
    Residual,
    guided_evaluator,
    in_loop_evaluator,
    normed,
    target_of,
)
from search_cases import random_genes, run_to_bits, seeded, seeds_of, tiny_evaluator
from second_device import FAR, Far, second_device
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from worker_tasks import Fail

from gaprune.config import make_settings
from gaprune.errors import GapruneError, InputError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.forward_modes import GuidedForward
from gaprune.evaluation.objectives import OBJECTIVES, find_objective
from gaprune.evolution.engine import Evolution
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.operators import CROSSOVERS, MUTATIONS
from gaprune.evolution.presets import find_preset
from gaprune.evolution.search_plan import SearchLimits, SearchPlan
from gaprune.evolution.tasks import BreedTask, ScoreGroupTask, ScoreTask, Task, ValidateTask
from gaprune.evolution.variation import Variation
from gaprune.masks.supermask import global_mask, pack, top_k_mask
from gaprune.models.forward import deterministic
from gaprune.workers import SerialWorkers, WorkerOptions, choose_device
from gaprune.workers.device import move_evaluator
from gaprune.workers.ray_pool import RayWorkers

cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch sees no CUDA GPU on this machine"
)
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")

STEPS = Refinement(steps=3, learning_rate=0.5, batch=16, clip=3.0)


@pytest.mark.parametrize(
    ("worker_options", "expected"),
    [
        (WorkerOptions(device="cpu"), "cpu"),
        (WorkerOptions(2), "cpu"),
        (WorkerOptions(2, device="cpu"), "cpu"),
        (WorkerOptions(address="head:6379"), "cpu"),
        (WorkerOptions(2, gpus=0.5), "cuda"),
        (WorkerOptions(1, gpus=1, device="cuda"), "cuda"),
        pytest.param(WorkerOptions(), "cpu", marks=without_cuda),
        pytest.param(WorkerOptions(), "cuda", marks=cuda),
        pytest.param(WorkerOptions(device="cuda:0"), "cuda:0", marks=cuda),
    ],
    ids=str,
)
def test_actors_use_the_gpus_that_they_reserve(
    worker_options: WorkerOptions, expected: str
) -> None:
    """And no others; in this process `auto` is a GPU if there is one."""
    assert choose_device(worker_options) == expected


@pytest.mark.parametrize(
    ("worker_options", "message"),
    [
        (WorkerOptions(2, device="cuda"), "'cuda'.*add gpus_per_worker"),
        (WorkerOptions(2, gpus=0.5, device="cpu"), "'cpu'.*gpus_per_worker=0.5"),
        (WorkerOptions(2, gpus=1, device="cuda:1"), "'cuda:1'.*device='cuda'"),
        pytest.param(WorkerOptions(device="cuda:0"), "'cuda:0'.*device='cpu'", marks=without_cuda),
        pytest.param(WorkerOptions(device="cuda:99"), "'cuda:99'", marks=cuda),
    ],
    ids=str,
)
def test_an_unavailable_device_is_refused(worker_options: WorkerOptions, message: str) -> None:
    """The message names the option that helps."""
    with pytest.raises(InputError, match=f"^device: {message}"):
        choose_device(worker_options)


@without_cuda
def test_the_command_line_refuses_a_missing_gpu(run: Run) -> None:
    """Exit code 2 and the way out, before the network is loaded."""
    ran = run("prune", "mnist-mlp", "--sparsity", "0.9", "--device", "cuda", "--no-save")
    assert ran.code == 2
    assert "device: 'cuda'" in ran.err
    assert "--device cpu" in " ".join(ran.err.split())


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", "mps", ""])
def test_a_device_of_no_known_kind_is_refused(name: str) -> None:
    """Also those that nothing is promised for."""
    with pytest.raises(InputError, match=r"device: .*cuda:N.*got"):
        make_settings({"sparsity": 0.5, "device": name})


float32 = partial(target_of, double=False)
EVALUATORS: dict[str, Callable[[], Evaluator]] = {
    "strict, generated inputs": tiny_evaluator,
    "strict, stored and generated inputs": lambda: tiny_evaluator(gradient_share=0.5),
    **{name: partial(tiny_evaluator, name, gradient_share=1, labels=True) for name in OBJECTIVES},
    "repaired, convolutions": lambda: in_loop_evaluator(float32(Convolutional, (2, 6, 6))),
    "repaired, attention": lambda: in_loop_evaluator(float32(Encoder, (5, 8))),
    "guided, residual": lambda: guided_evaluator(float32(Residual, (2, 6, 6)), statistics_loss=1.0),
    "guided, generated inputs": lambda: guided_evaluator(
        float32(normed, (6,)), share=0.5, statistics_loss=1.0
    ),
}


def all_tasks(evaluator: Evaluator) -> list[Task | ScoreGroupTask]:
    """Return tasks of all kinds: every operator, gradient steps in every scope, both rungs."""
    keep = evaluator.layout.total // 2
    parents = tuple(random_genes(evaluator.layout, keep, seed) for seed in (1, 2))
    guided = isinstance(evaluator.forward_mode, GuidedForward)
    fading = replace(STEPS, fade=(0.0, 0.9)) if guided else STEPS
    recipes = [Variation(refinement=STEPS), Variation("averaging", "gaussian", (), fading)]
    recipes += [Variation(crossover=name) for name in CROSSOVERS]
    recipes += [Variation(mutation=name) for name in MUTATIONS]
    tasks: list[Task | ScoreGroupTask] = [
        BreedTask(parents if recipe.crossover else parents[:1], recipe, seed, seed % 2)
        for seed, recipe in enumerate(recipes)
    ]
    for scope in ("global", "layer"):
        genes = random_genes(evaluator.layout, keep, 3, scope)
        tasks.append(BreedTask((genes,), Variation(refinement=STEPS), 9, -1))
    masks = [parent.decode(evaluator.layout) for parent in parents]
    tasks += [ScoreTask(pack(mask), rung) for mask in masks for rung in (0, -1)]
    tasks += [ScoreTask(pack(mask), -1, repaired=True) for mask in masks if guided]
    return [
        *tasks,
        *(ValidateTask(pack(mask)) for mask in masks),
        ScoreGroupTask(tuple(map(pack, masks)), -1),
    ]


@pytest.fixture
def plain_attention() -> Iterator[None]:
    """Attention by plain products on every device: each has fast kernels of its own."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.backends.mha.set_fastpath_enabled(fast)


@pytest.mark.slow
@pytest.mark.usefixtures("plain_attention")
@pytest.mark.parametrize("name", EVALUATORS)
def test_everything_happens_on_the_device_of_the_evaluator(name: str) -> None:
    """No tensor is left behind or comes from elsewhere: the CPU's results, bit for bit.

    Genes, masks and numbers that come back are on the CPU.
    """
    evaluator = EVALUATORS[name]()
    tasks = all_tasks(evaluator)
    expected = run_to_bits(SerialWorkers(evaluator), tasks)
    with second_device(), SerialWorkers(evaluator, 1, str(FAR)) as workers:
        assert run_to_bits(workers, tasks) == expected


def test_a_copy_is_moved_and_the_evaluator_of_the_caller_stays() -> None:
    """The copy has the same bits, and its weights share memory with its network."""
    evaluator = tiny_evaluator()
    before = {name: value.clone() for name, value in evaluator.network.model.state_dict().items()}
    with second_device() as device:
        moved = evaluator.to(device)
        assert isinstance(next(moved.network.model.parameters()), Far)
        for name, weight in moved.network.weights.items():
            assert torch.equal(weight.cpu(), before[name])
            assert not weight.requires_grad
            moved.network.model.get_parameter(name).data.add_(1)
            assert torch.equal(weight.cpu(), before[name] + 1)
    for name, value in evaluator.network.model.state_dict().items():
        assert type(value) is Tensor
        assert torch.equal(value, before[name])
    assert type(evaluator.search.inputs) is Tensor


def test_on_the_cpu_nothing_is_moved() -> None:
    """The evaluator is the same object, and is not even tried."""
    evaluator = tiny_evaluator()
    assert evaluator.to("cpu") is evaluator
    assert move_evaluator(evaluator, "cpu") is evaluator
    assert move_evaluator("no evaluator", "cuda") == "no evaluator"


class Stuck(nn.Module):
    """A network with a tensor that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.scale = torch.full((4,), 2.0)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs) * self.scale  # type: ignore[no-any-return]


def test_a_network_that_cannot_be_moved_is_named_with_the_way_out() -> None:
    """Before anything is searched."""
    evaluator = replace(
        in_loop_evaluator(float32(Stuck, (6,))), forward_mode=tiny_evaluator().forward_mode
    )
    with second_device() as device, pytest.raises(InputError) as caught:
        evaluator.to(device).check_forward()
    message = str(caught.value)
    assert message.startswith("device: ")
    assert "meta" in message
    assert "register_buffer" in message
    assert message.endswith("device='cpu'")


def test_an_objective_of_ones_own_is_shown_cpu_tensors(tmp_path: Path) -> None:
    """So it may use numpy wherever candidates are tried."""
    code = "def score(outputs, teacher, labels):\n    return -(outputs - teacher).numpy().max()\n"
    (tmp_path / "own.py").write_text(code)
    evaluator = tiny_evaluator()
    evaluator = replace(
        evaluator, objective=find_objective(f"{tmp_path}/own.py:score", torch.zeros(2, 4))
    )
    mask = torch.rand(evaluator.layout.total, generator=seeded()) < 0.5
    expected = evaluator.fitness(mask)
    with second_device() as device:
        assert evaluator.to(device).fitness(mask) == expected < 0


def test_masks_are_exact_there() -> None:
    """With many ties, in one layer and over all of them: those of the CPU."""
    evaluator = tiny_evaluator()
    scores = torch.randint(0, 6, (evaluator.layout.total,), generator=seeded()).float()
    with second_device() as device:
        for keep in (1, 3, 57, 100, evaluator.layout.total):
            far = scores.to(device)
            assert torch.equal(top_k_mask(far, keep).cpu(), top_k_mask(scores, keep))
            if keep >= sum(evaluator.layout.min_counts):
                expected = global_mask(scores, evaluator.layout, keep)
                assert torch.equal(global_mask(far, evaluator.layout, keep).cpu(), expected)


def test_a_gpu_is_set_to_equal_bits_only_while_tasks_run() -> None:
    """The switches are torch's own and there on every build; the caller's come back."""

    def switches() -> tuple[object, ...]:
        backends: Any = torch.backends
        kernels = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
        return (
            *(one.fp32_precision for one in kernels),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )

    before = switches()
    with deterministic("cpu"):
        assert switches() == before
    with deterministic("cuda"):
        assert switches() == ("ieee", "ieee", "ieee", True, True)
    assert switches() == before
    with contextlib.suppress(ValueError), deterministic("cuda"):
        raise ValueError
    assert switches() == before


def test_a_full_memory_is_told_with_the_way_out() -> None:
    """Of the worker in this process; actors are tried again elsewhere."""
    with pytest.raises(GapruneError, match=r"device: .*CUDA out of memory.*batch="):
        SerialWorkers(None).run([Fail(torch.OutOfMemoryError, "CUDA out of memory")])


@cuda
@pytest.mark.parametrize("name", EVALUATORS)
def test_a_gpu_scores_as_the_cpu_does(name: str) -> None:
    """Up to rounding: fitness, verdicts, gradients; masks are exact."""
    evaluator = EVALUATORS[name]()
    moved = move_evaluator(evaluator, "cuda")
    mask = random_genes(evaluator.layout, evaluator.layout.total // 2).decode(evaluator.layout)
    with deterministic("cuda"):
        assert moved.fitness(mask) == pytest.approx(evaluator.fitness(mask), rel=1e-3, abs=1e-4)
        assert moved.validate(mask) == pytest.approx(evaluator.validate(mask), rel=1e-3, abs=1e-4)
        here = evaluator.score_gradient(mask, evaluator.draw_batch(16, seeded()))
        there = moved.score_gradient(mask, moved.draw_batch(16, seeded())).cpu()
    assert torch.nn.functional.cosine_similarity(here, there, dim=0) > 0.999
    for child in SerialWorkers(evaluator, 1, "cuda").run(all_tasks(evaluator)[:2]):
        assert int(child.genes.decode(evaluator.layout).count_nonzero()) == child.keep
        assert child.genes.scores.device.type == "cpu"


@cuda
def test_a_gpu_gives_equal_bits_twice() -> None:
    """Every kind of task."""
    for make in EVALUATORS.values():
        evaluator = make()
        tasks = all_tasks(evaluator)
        once, twice = (run_to_bits(SerialWorkers(evaluator, 1, "cuda"), tasks) for _ in range(2))
        assert once == twice


@cuda
def test_an_actor_with_a_part_of_a_gpu_gives_the_bits_of_one_here(ray_session: None) -> None:
    """A search in this process on the GPU, and on two actors that share it."""
    evaluator = tiny_evaluator(gradient_share=0.5)

    def search(on: SerialWorkers | RayWorkers) -> list[str]:
        plan = SearchPlan(
            preset=find_preset("default"),
            layout=evaluator.layout,
            seed=3,
            population=4,
            offspring=6,
            refinement=STEPS,
            limits=SearchLimits(generations=3),
            keep=60,
            group=8,
        )
        with on as workers:
            return [
                one.key for one in Evolution(plan, workers).run(seeds_of(evaluator, 60)).population
            ]

    alone = search(SerialWorkers(evaluator, 1, "cuda"))
    assert search(RayWorkers(evaluator, WorkerOptions(2, gpus=0.5, device="cuda"))) == alone
