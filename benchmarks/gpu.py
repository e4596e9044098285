"""Evaluations per second on a GPU and on the CPU of the same machine.

    python -m benchmarks.gpu                          # everything, on a machine with a GPU
    python -m benchmarks.gpu --only together --json   # one part, rows as JSON
    python -m benchmarks.gpu --device cpu             # only the CPU's rows, on any machine

Parts: `devices` (CPU and GPU, every precision), `together` (masks scored in groups by one forward
pass, and one by one), `actors` (1, 2 and 4 Ray actors that share one GPU). An evaluation is a
scored mask or a gradient step. Fresh calibration inputs are drawn on the CPU for every step, stored
ones are drawn once: if the two rates differ on a GPU, it waits for the CPU. Without a GPU the exit
code is 1, unless `--device cpu` is given.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count, islice

import numpy as np
import torch
from numpy.typing import NDArray

from gaprune.config import make_settings
from gaprune.evaluation.evaluator import GROUP, Evaluator
from gaprune.evolution.genome import Genes, seed_genes
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.tasks import BreedTask, ScoreGroupTask, ScoreTask
from gaprune.evolution.variation import Variation
from gaprune.masks.supermask import pack
from gaprune.models.target import load_target
from gaprune.runs.run import PruningRun
from gaprune.runs.setup import check_settings, resolve_settings
from gaprune.workers import SerialWorkers, WorkerOptions, Workers
from gaprune.workers.ray_pool import RayWorkers
from gaprune.workers.serial import torch_threads

CPU, CUDA = "cpu", "cuda"
PRECISIONS = {CPU: ("float32", "bfloat16"), CUDA: ("float32", "bfloat16", "float16")}
SPARSITY, STEPS = 0.9, 10
TASKS = 4  # queued tasks per actor


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        part: key of `PARTS`.
        network: name in the zoo.
        device: `cpu` or `cuda`.
        precision: precision of scoring and gradient steps.
        what: `score`, `score together`, `steps, stored inputs` or `steps, fresh inputs`.
        actors: number of Ray actors that share one GPU; 0: this process.
        per_second: evaluations per second.
    """

    part: str
    network: str
    device: str
    precision: str
    what: str
    actors: int
    per_second: float


@dataclass(frozen=True)
class Case:
    """A network with its evaluator, and the options of all parts.

    Attributes:
        network: name in the zoo.
        evaluator: its evaluator on the CPU.
        devices: `cpu`, or `cpu` and `cuda`.
        actors: numbers of actors.
        batch: inputs per gradient step.
        seconds: minimum time of each measurement.
    """

    network: str
    evaluator: Evaluator
    devices: Sequence[str]
    actors: Sequence[int]
    batch: int
    seconds: float

    def genes(self) -> Genes:
        """Return the genes of magnitude pruning."""
        layout = self.evaluator.layout
        keep = round((1 - SPARSITY) * layout.total)
        return seed_genes(
            layout.flatten(self.evaluator.network.weights).abs(), layout, keep, "global"
        )

    def masks(self) -> Iterator[NDArray[np.uint8]]:
        """Yield packed masks of the same size, all different: evaluators cache known masks."""
        mask = self.genes().decode(self.evaluator.layout)
        return (pack(mask.roll(shift)) for shift in count())

    def with_stored_inputs(self) -> Evaluator:
        """Return the evaluator with gradient steps on the stored calibration inputs."""
        return replace(
            self.evaluator, gradient_inputs=self.evaluator.search, gradient_share=1.0, mixture=None
        )

    def steps(self, seed: int) -> BreedTask:
        """Return a task of `STEPS` gradient steps and one score."""
        recipe = Variation(refinement=Refinement(STEPS, 1.0, self.batch))
        return BreedTask((self.genes(),), recipe, seed, -1)


def rate(run: Callable[[], object], evaluations: int, seconds: float) -> float:
    """Return evaluations per second of a function, after one warm-up call."""
    run()
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds or not calls:
        run()
        calls += 1
    return round(calls * evaluations / elapsed, 1)


def score_next(workers: Workers, masks: Iterator[NDArray[np.uint8]], size: int = 1) -> None:
    """Score the next masks one by one."""
    workers.run([ScoreTask(mask, -1) for mask in islice(masks, size)])


def devices(case: Case) -> Iterator[Row]:
    """Score masks and take gradient steps on every device in every precision."""
    masks = case.masks()
    for device in case.devices:
        for precision in PRECISIONS[device]:
            row = partial(Row, "devices", case.network, device, precision)
            evaluators = {"stored": case.with_stored_inputs(), "fresh": case.evaluator}
            for calibration, evaluator in evaluators.items():
                with SerialWorkers(replace(evaluator, precision=precision), 1, device) as workers:
                    if calibration == "stored":
                        speed = rate(lambda: score_next(workers, masks), 1, case.seconds)
                        yield row("score", 0, speed)
                    run = partial(workers.run, [case.steps(1)])
                    speed = rate(run, STEPS + 1, case.seconds)
                    yield row(f"steps, {calibration} inputs", 0, speed)


def together(case: Case) -> Iterator[Row]:
    """Score a group of masks one by one and in one forward pass."""
    masks = case.masks()
    for device in case.devices:
        row = partial(Row, "together", case.network, device, "float32")
        with SerialWorkers(case.evaluator, 1, device) as workers:
            speed = rate(lambda: score_next(workers, masks, GROUP), GROUP, case.seconds)
            yield row("score", 0, speed)
            speed = rate(
                lambda: workers.run([ScoreGroupTask(tuple(islice(masks, GROUP)), -1)]),
                GROUP,
                case.seconds,
            )
            yield row("score together", 0, speed)


def actors(case: Case) -> Iterator[Row]:
    """Take gradient steps on actors that share one GPU, or on CPU actors."""
    for device in case.devices[-1:]:
        for number in case.actors:
            worker_options = WorkerOptions(
                number, gpus=0.0 if device == CPU else 1 / number, device=device
            )
            with RayWorkers(case.with_stored_inputs(), worker_options) as workers:
                wait_for_all(workers, number)
                tasks = [case.steps(seed) for seed in range(TASKS * number)]
                run = partial(workers.run, tasks)
                speed = rate(run, (STEPS + 1) * len(tasks), case.seconds)
            row = Row(
                "actors",
                case.network,
                device,
                "float32",
                "steps, stored inputs",
                number,
                speed,
            )
            yield row


def wait_for_all(workers: RayWorkers, count: int) -> None:
    """Wait until every actor has loaded the evaluator: a run starts with the first of them."""
    while len(workers.idle) < count:
        any_task: Workers = workers
        any_task.run([_Wait()])


@dataclass(frozen=True)
class _Wait:
    def run(self, _evaluator: Evaluator) -> None:
        """Sleep, so that other actors can start."""
        time.sleep(0.1)


PARTS: dict[str, Callable[[Case], Iterator[Row]]] = {
    "devices": devices,
    "together": together,
    "actors": actors,
}


def make_case(network: str, options: argparse.Namespace) -> Case:
    """Load a network and make its calibration inputs."""
    target = load_target(network)
    settings = {"sparsity": SPARSITY, "calibration": ("procedural",), "device": CPU}
    settings |= {
        "calibration_count": options.calibration,
        "validation_count": options.calibration,
    }
    checked = check_settings(make_settings(settings))
    run = PruningRun(target, resolve_settings(checked, target))
    devices = (CPU,) if options.device == CPU else (CPU, CUDA)
    batch = run.settings.batch or 1
    return Case(network, run.evaluator, devices, options.actors, batch, options.seconds)


def table(rows: Sequence[Row]) -> list[str]:
    """Return the rows in Markdown."""
    lines = [
        "| part | network | device | precision | what | actors | evaluations per second |",
        "|---|---|---|---|---|---|---|",
    ]
    return lines + [
        f"| {row.part} | {row.network} | {row.device} | {row.precision} | {row.what} "
        f"| {row.actors or 'none'} | {row.per_second:,.1f} |"
        for row in rows
    ]


def hardware() -> str:
    """Return torch version, threads and GPU in one line."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"torch {torch.__version__}, one CPU thread, {gpu}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table, or rows as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="parts")
    parser.add_argument("--networks", nargs="+", default=["mnist-mlp", "lenet", "mnist-cnn"])
    parser.add_argument("--device", choices=["auto", CPU], default="auto")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument(
        "--calibration", type=int, default=1024, help="number of calibration inputs"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="minimum time per row")
    parser.add_argument("--json", action="store_true", help="print only rows, as JSON")
    options = parser.parse_args(arguments)
    if options.device != CPU and not torch.cuda.is_available():
        print(
            f"gpu: torch {torch.__version__} finds no CUDA GPU; run it on a machine with one, "
            "or add --device cpu to measure only the CPU",
            file=sys.stderr,
        )
        return 1
    rows: list[Row] = []
    with torch_threads(1):
        for network in options.networks:
            case = make_case(network, options)
            for part in options.only:
                for row in PARTS[part](case):
                    rows.append(row)
                    print(table([row])[-1], file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print("\n".join([*table(rows), "", hardware()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
