"""The charts of a run: progress of the search, other sparsities, other methods, layer densities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gaprune.formatting import duration, number, percent
from gaprune.report.charts import Axis, Chart, DotPlot, Point, Series, Text
from gaprune.report.headline import corrected_networks, network_name, network_scores
from gaprune.report.reading import RunFiles
from gaprune.report.scales import Linear, Log, short

LOG_RATIO = 10.0  # the largest density over the smallest one from which on an axis is logarithmic
MAX_ROWS = 40  # layers of a dot plot
VALIDATION = "agreement on the validation inputs"


def tick_percent(value: float) -> str:
    """Format a fraction as a tick label."""
    return percent(value, digits=None)


def search_charts(run: RunFiles) -> list[tuple[str, list[Chart]]]:
    """Return the charts of a search, by their x axis: evaluations, then seconds.

    Fitness and agreement have different units, so each has its own chart.
    """
    names = ("generation", "evaluations", "seconds", "best", "mean", "validation")
    history = [
        generation
        for generation in run.history
        if all(isinstance(generation.get(name), (int, float)) for name in names)
    ]
    # A line needs two generations.
    if len(history) < 2:
        return []
    return [(axis, _progress_charts(run, history, axis)) for axis in ("evaluations", "seconds")]


def _progress_charts(
    run: RunFiles, history: Sequence[Mapping[str, Any]], x_name: str
) -> list[Chart]:
    largest = max(float(generation[x_name]) for generation in history)
    # A margin of 2 % keeps the last point off the edge; 1e-9 avoids an empty range.
    x = Axis(x_name, Linear(0, max(largest, 1e-9) * 1.02), short, exact=number)
    best = run.record.get("best_baseline")
    agreement = run.record["baselines"].get(best, {}).get("agreement") if best else None
    references = [] if agreement is None else [(float(agreement), f"{best}, the best criterion")]

    def series(name: str, key: str, style: int, text: Text) -> Series:
        dots = []
        for generation in history:
            value = float(generation[key])
            tooltip = (
                f"generation {generation['generation']}: {text(value)}, "
                f"{number(generation['evaluations'])} evaluations, "
                f"{duration(float(generation['seconds']))}"
            )
            dots.append(Point(float(generation[x_name]), value, tooltip))
        return Series(name, dots, style, highlighted=style == 0)

    validation = [float(generation["validation"]) for generation in history]
    fitness = [float(generation[key]) for generation in history for key in ("best", "mean")]
    scale = _fractions(validation + [value for value, _ in references])
    return [
        Chart(
            "Agreement on the validation inputs",
            x,
            Axis("agreement", scale, tick_percent, exact=percent),
            [series("best candidate", "validation", 0, percent)],
            note="The best candidate of each generation. The search never selects on these inputs.",
            references=references,
            height=230,
        ),
        Chart(
            "Fitness on the calibration inputs",
            x,
            Axis("fitness", Linear.around(fitness)),
            [series("best", "best", 0, number), series("population mean", "mean", 1, number)],
            note="The objective that the search maximises.",
            height=230,
        ),
    ]


def _fractions(values: Sequence[float]) -> Linear:
    """Return a scale for fractions that doesn't extend beyond 0 and 1."""
    scale = Linear.around(values, gain=0.12)
    return Linear(max(0.0, scale.low), min(1.0, scale.high))


def front_chart(run: RunFiles) -> Chart | None:
    """Return the Pareto front of a search over many sparsities, or the trials of --max-drop."""
    front, trials = run.record.get("front") or (), run.record.get("trials") or ()
    if front:
        title = "Pareto front"
        note = "No network is better in both respects; each is in front.safetensors."
        groups = {"not dominated": front}
    elif trials:
        title = "Sparsities tried"
        note = f"At most {tick_percent(run.record['settings']['max_drop'])} may be lost."
        groups = {
            name: [trial for trial in trials if bool(trial.get("within_limit")) == within]
            for name, within in (("within the limit", True), ("loses more", False))
        }
    else:
        return None

    def point(network: Mapping[str, Any]) -> Point:
        sparsity, agreement = float(network["sparsity"]), float(network["validation"])
        text = f"{percent(sparsity)} removed: {percent(agreement)} {VALIDATION}"
        return Point(1 - sparsity, agreement, text)

    series = [
        Series(
            name,
            sorted(map(point, group), key=lambda dot: dot.x),
            style,
            joined=bool(front),
            highlighted=style == 0,
        )
        for style, (name, group) in enumerate(groups.items())
    ]
    # Both axes must contain every group.
    dots = [dot for line in series for dot in line.points]
    kept_weights = Log.around([dot.x for dot in dots])
    agreement = _fractions([dot.y for dot in dots])
    return Chart(
        title,
        Axis("weights kept", kept_weights, tick_percent),
        Axis(VALIDATION, agreement, tick_percent, exact=percent),
        series,
        note=note,
    )


def method_scores(run: RunFiles) -> list[tuple[str, float | None, float | None]]:
    """Return name, agreement and accuracy of all methods at this budget, best agreement first.

    The list is empty where no other method was tried.
    """
    record = run.record
    rows = [
        (str(name), score.get("agreement"), score.get("accuracy"))
        for name, score in record["baselines"].items()
    ]
    if not rows:
        return []
    method = str(record["method"])
    # A one-shot run is one of its own baselines: list it once.
    if network_name(record) != method or method not in record["baselines"]:
        rows.append((network_name(record), *network_scores(record)))
    # Repair and compensation after the search give networks with scores of their own.
    rows += [
        (f"{method}, {name}", network.get("validation"), network.get("accuracy"))
        for name, network in corrected_networks(record).items()
        if not network.get("in_loop")
    ]
    return sorted(rows, key=lambda row: -(row[1] or 0.0))


def method_plot(run: RunFiles) -> DotPlot | None:
    """Return agreement and test accuracy of all methods at this budget."""
    rows = method_scores(run)
    if not rows:
        return None
    labelled = any(accuracy is not None for _, _, accuracy in rows)
    # Without test labels there is no accuracy to draw.
    names = (VALIDATION, "test accuracy")[: 1 + labelled]
    ticks, name = (0, 0.25, 0.5, 0.75, 1), "agreement, accuracy" if labelled else "agreement"
    axis = Axis(name, Linear(0.0, 1.0), tick_percent, exact=percent, ticks=ticks)
    return DotPlot(
        "Methods at the same budget",
        "All keep the same number of weights; none was fine-tuned.",
        axis,
        names,
        [(name, scores[: len(names)]) for name, *scores in rows],
        network_name(run.record),
    )


def other_densities(run: RunFiles) -> dict[str, list[int]]:
    """Return the weights that other methods keep, layer by layer."""
    return {
        name: counts
        for name, counts in (run.report_data.get("layer_counts") or {}).items()
        if len(counts) == len(run.record["layers"]) and name != run.record["method"]
    }


def density_plot(run: RunFiles) -> DotPlot | None:
    """Return the density of every layer, beside magnitude's, LAMP's and the best criterion's."""
    layers, others = run.record["layers"], other_densities(run)
    rows = []
    for index, layer in enumerate(layers[:MAX_ROWS]):
        counts = [layer["kept"], *(other[index] for other in others.values())]
        rows.append((str(layer["name"]), [count / layer["total"] for count in counts]))
    values = [value for _, row in rows for value in row if value > 0]
    if not values:
        return None
    # On a linear axis, layers of 1 % beside one of 50 % would be a single column of dots.
    logarithmic = max(values) / min(values) > LOG_RATIO
    scale = Log(min(values) / 1.3, max(1.0, *values)) if logarithmic else Linear(0.0, 1.0)
    note = "Fraction of weights kept in each layer, from input to output."
    more = len(layers) - len(rows)
    note += f" {more} more layers are in the table below." if more else ""
    names = [network_name(run.record), *others]
    return DotPlot(
        "Layer density",
        note,
        Axis("density, the fraction of weights kept", scale, tick_percent, exact=percent),
        names,
        rows,
    )
