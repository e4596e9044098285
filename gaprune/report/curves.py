"""Charts of a search: how it went, what it found at other sparsities, and what it had to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gaprune.formatting import duration, number, percent
from gaprune.report.charts import Axis, Chart, Frame, Point, Series, draw
from gaprune.report.dots import DotPlot, dot_plot
from gaprune.report.headline import in_loop, own_name, own_scores
from gaprune.report.reading import RunFiles
from gaprune.report.scales import Linear, Log
from gaprune.report.words import short

WIDE = 30.0  # how many times larger the largest density is than the smallest for a log axis
MOST_ROWS = 40  # layers of a dot plot


def whole(value: float) -> str:
    """Percent without needless digits, for an axis."""
    return percent(value, digits=None)


def search_charts(run: RunFiles) -> list[tuple[str, list[Chart]]]:
    """Return the charts of a search by what they are drawn against: evaluations, then seconds.

    Fitness and agreement have units of their own, so each has a chart.
    """
    history = [one for one in run.history if _is_generation(one)]
    if len(history) < 2:
        return []
    return [
        (
            "evaluations",
            _pair(
                run, history, "evaluations", Axis("evaluations", Linear(0, 1), short, exact=number)
            ),
        ),
        (
            "seconds",
            _pair(run, history, "seconds", Axis("seconds", Linear(0, 1), short, exact=number)),
        ),
    ]


def _is_generation(one: Mapping[str, Any]) -> bool:
    names = ("generation", "evaluations", "seconds", "best", "mean", "validation")
    return all(isinstance(one.get(name), (int, float)) for name in names)


def _pair(
    run: RunFiles, history: Sequence[Mapping[str, Any]], against: str, axis: Axis
) -> list[Chart]:
    last = max(float(one[against]) for one in history)
    axis = replace(axis, scale=Linear(0, max(last, 1e-9) * 1.02))
    best = run.record.get("best_baseline")
    beaten = run.record["baselines"].get(best, {}).get("agreement") if best else None
    rules = [] if beaten is None else [(float(beaten), f"{best}, the best ranking")]
    validation = [float(one["validation"]) for one in history]
    top = Frame(
        "Agreement on the validation inputs",
        axis,
        Axis("agreement", _unit(validation + [value for value, _ in rules]), whole, exact=percent),
        note="The leader of every generation, judged on inputs that never steer the search.",
        rules=rules,
        height=230,
    )
    bottom = Frame(
        "Fitness on the search calibration inputs",
        axis,
        Axis(
            "fitness", Linear.around([float(one[n]) for one in history for n in ("best", "mean")])
        ),
        note="What is maximised. The mean is that of the population; larger is better.",
        height=230,
    )
    return [
        draw(
            top,
            [Series("leader", _points(history, against, "validation", percent), 0, strong=True)],
        ),
        draw(
            bottom,
            [
                Series("best", _points(history, against, "best", number), 0, strong=True),
                Series("mean", _points(history, against, "mean", number), 1),
            ],
        ),
    ]


def _points(
    history: Sequence[Mapping[str, Any]],
    against: str,
    what: str,
    text: Any,  # noqa: ANN401
) -> list[Point]:
    return [
        Point(
            float(one[against]),
            float(one[what]),
            f"generation {one['generation']}: {text(float(one[what]))}, "
            f"{number(one['evaluations'])} evaluations, {duration(float(one['seconds']))}",
        )
        for one in history
    ]


def _unit(values: Sequence[float]) -> Linear:
    """Return a scale for parts of 1 that wastes no room and goes no further than 0 and 1."""
    found = Linear.around(values, gain=0.12)
    return Linear(max(0.0, found.low), min(1.0, found.high) if found.high > 1 else found.high)


def front_chart(run: RunFiles) -> Chart | None:
    """Return the Pareto front of a search over many sparsities, or what --max-drop tried."""
    front = run.record.get("front") or ()
    tried = run.record.get("trials") or ()
    if front:
        title = "Pareto front"
        note = "No network that was found is better at both; each is in front.safetensors."
        groups = {"not dominated": front}
    elif tried:
        title = "Sparsities that were tried"
        note = f"Allowed to lose {whole(run.record['settings']['max_drop'])} of agreement."
        groups = {
            "holds": [one for one in tried if one.get("within_limit")],
            "loses more": [one for one in tried if not one.get("within_limit")],
        }
    else:
        return None
    everything = [one for group in groups.values() for one in group]
    densities = [1 - float(one["sparsity"]) for one in everything]
    scale = Log.around(densities)
    x = Axis("weights kept", scale, whole)
    agreement = _unit([float(one["validation"]) for one in everything])
    y = Axis("agreement on the validation inputs", agreement, whole, exact=percent)
    series = [
        Series(
            name,
            [
                Point(
                    1 - float(one["sparsity"]),
                    float(one["validation"]),
                    f"{percent(one['sparsity'])} removed: {percent(one['validation'])} on the validation inputs",
                )
                for one in sorted(group, key=lambda one: -float(one["sparsity"]))
            ],
            number_of,
            joined=bool(front),
            strong=number_of == 0,
        )
        for number_of, (name, group) in enumerate(groups.items())
    ]
    return draw(Frame(title, x, y, note=note), series)


def method_scores(run: RunFiles) -> list[tuple[str, float | None, float | None]]:
    """Return every method at the same budget: name, agreement, accuracy; the best agreement first.

    Nothing where no other method was tried.
    """
    record = run.record
    rows = [
        (str(name), score.get("agreement"), score.get("accuracy"))
        for name, score in record["baselines"].items()
    ]
    if not rows:
        return []
    method = str(record["method"])
    if own_name(record) != method or method not in record["baselines"]:
        rows.append((own_name(record), *own_scores(record)))
    repaired = record.get("repaired")
    if repaired and not in_loop(record):
        rows.append((f"{method}, repaired", repaired.get("validation"), repaired.get("accuracy")))
    return sorted(rows, key=lambda row: -(row[1] or 0.0))


def method_plot(run: RunFiles) -> DotPlot | None:
    """Return every method at the same budget, best first, with agreement and test accuracy."""
    rows = method_scores(run)
    if not rows:
        return None
    labelled = any(accuracy is not None for _, _, accuracy in rows)
    names = ("agreement on the validation inputs", "test accuracy")[: 1 + labelled]
    axis = Axis("", Linear(0.0, 1.0), whole, exact=percent, ticks=(0, 0.25, 0.5, 0.75, 1))
    note = "All keep the same number of weights; none was fine-tuned."
    cut = [(name, values[: len(names)]) for name, *values in rows]
    own = own_name(run.record)
    return dot_plot(("Methods at the same budget", note, axis), names, cut, strong=own)


def density_plot(run: RunFiles) -> DotPlot | None:
    """Return how dense every layer stays, beside magnitude's, LAMP's and the best ranking's."""
    layers = run.record["layers"]
    beside = {
        name: kept
        for name, kept in (run.report_data.get("kept") or {}).items()
        if len(kept) == len(layers) and name != run.record["method"]
    }
    names = [own_name(run.record), *beside]
    rows = []
    for place, layer in enumerate(layers[:MOST_ROWS]):
        kept = [layer["kept"], *(counts[place] for counts in beside.values())]
        rows.append((str(layer["name"]), [one / layer["total"] for one in kept]))
    values = [value for _, row in rows for value in row if value > 0]
    if not values:
        return None
    wide = max(values) / min(values) > WIDE / 3
    scale = Log(min(values) / 1.3, max(1.0, *values)) if wide else Linear(0.0, 1.0)
    more = len(layers) - len(rows)
    note = "Weights kept in each layer, from the input to the output."
    note += " The axis is logarithmic." if wide else ""
    note += f" {more} more layers are in the table below." if more else ""
    return dot_plot(
        ("How dense each layer stays", note, Axis("", scale, whole, exact=percent)), names, rows
    )
