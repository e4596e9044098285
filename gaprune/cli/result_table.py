"""Tables of a run: its result, its time by part, and what `--dry-run` predicts."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gaprune.cli.console import add_row, table
from gaprune.config import EVOLVED
from gaprune.formatting import MISSING, duration, percent, points, removed_weights
from gaprune.pattern_names import UNSTRUCTURED, WEIGHTS, sparsity_unit
from gaprune.profiling import PARTS, Profile, Timings
from gaprune.runs.dry_run import DryRun
from gaprune.runs.result import Result

MOST_LAYERS = 40  # rows; the other layers are summed in one row
_ENDINGS = {
    "generations": "the search reached its number of generations",
    "evaluations": "the search reached its limit of evaluations",
    "seconds": "the search reached its limit of seconds",
    "stagnation": "the search stopped because nothing improved",
    "validation": "the search stopped because agreement on the validation inputs fell",
    "interrupted": "the search was interrupted; this is the best mask so far",
    "one-shot": "one-shot method, no search",
}


def show_result(result: Result, console: Console, *, verbose: bool = False) -> None:
    """Print what was removed, gained and spent; with `verbose` layers, methods and inputs too."""
    total = result.target.layout.total
    removed = removed_weights(total - result.kept, total, result.parameters)
    values = "all of them unchanged" if result.compensated is None else "some changed to compensate"
    console.print(f"{removed} removed; {result.kept:,} kept, {values}")
    settings = result.settings
    unit = sparsity_unit(settings.get("pattern", UNSTRUCTURED), settings.get("budget", WEIGHTS))
    if unit is not None:  # the sparsity above counts weights, the budget something else
        console.print(f"requested: {percent(result.sparsity)} of the {unit} removed")
    if verbose:
        console.print(_layer_table(result))
        console.print(_method_table(result))
    if result.front:
        names = list(result.front[0])
        front = table(*(name.replace("_", " ") for name in names), title="Pareto front")
        for point in result.front:
            add_row(front, [percent(point[name]) for name in names])
        console.print(front)
    if result.trials:
        console.print(_trial_table(result))
    for line in [*(_input_facts(result) if verbose else ()), *_result_facts(result)]:
        console.print(Text(line))


def gain_text(result: Result) -> str:
    """Return what is left of the network in one line: accuracy, or agreement without test data."""
    agreement, accuracy = result.final_scores
    left = 1 - result.actual_sparsity
    weights = f"with {percent(round(left, 4) or left, None)} of the weights"
    if accuracy is not None:
        return f"accuracy {percent(accuracy)} of {percent(result.dense_accuracy)} {weights}"
    if (scores := result.perplexity) is not None:
        return f"perplexity {scores['pruned']:.4g} (dense {scores['dense']:.4g}) {weights}"
    inputs = "generated inputs" if result.provenance.is_generated else "validation inputs"
    return f"agreement {percent(agreement)} with the dense network on {inputs} {weights}"


def _layer_table(result: Result) -> Table:
    rows = table("layer", "weights", "kept", "density", title=f"Layers of {result.target.name}")
    counts = [(layer.name, layer.total, layer.kept) for layer in result.layers[:MOST_LAYERS]]
    if others := result.layers[MOST_LAYERS:]:
        sums = sum(layer.total for layer in others), sum(layer.kept for layer in others)
        counts.append((f"{len(others)} more", *sums))
    for name, total, num_kept in counts:
        add_row(rows, [name, f"{total:,}", f"{num_kept:,}", percent(num_kept / total)])
    return rows


def _method_table(result: Result) -> Table:
    heads = ("method", "agreement on the validation inputs", "test accuracy")
    rows = table(*heads, title="Methods at the same budget")
    add_row(rows, ["dense network", percent(1.0), percent(result.dense_accuracy)])
    # a one-shot method is one of the baselines below, unless they are scored after repair
    if result.method == EVOLVED or result.in_loop:
        cells = [result.method, percent(result.validation_agreement), percent(result.accuracy)]
        add_row(rows, cells, strong=True)
    for name, network in result.corrected.items():
        cells = [percent(network.validation), percent(network.accuracy)]
        add_row(rows, [f"{result.method}, {name}", *cells], strong=True)
    for name, score in sorted(result.baselines.items(), key=lambda item: -item[1].agreement):
        if result.in_loop and name == result.method:
            continue  # a row above is the same network
        label = f"{name}, {result.scored_as}" if result.in_loop else name
        cells = [label, percent(score.agreement), percent(score.accuracy)]
        add_row(rows, cells, strong=name == result.method)
    return rows


def _trial_table(result: Result) -> Table:
    limit = points(result.settings["max_drop"]).lstrip("+")
    heads = ("sparsity", "agreement on the validation inputs", f"drop at most {limit}")
    rows = table(*heads, title="Sparsities tried")
    for trial in sorted(result.trials, key=lambda trial: float(trial["sparsity"])):
        within = "yes" if trial["within_limit"] else "no"
        cells = [f"{trial['sparsity']:g}", percent(trial["validation"]), within]
        add_row(rows, cells, strong=trial["sparsity"] == result.sparsity)
    return rows


def _input_facts(result: Result) -> list[str]:
    provenance = result.provenance
    sources = "; ".join(provenance.sources)
    lines = [
        f"calibration inputs ({provenance.level}): {sources} ({provenance.samples:,} inputs)",
        f"validation inputs: {provenance.validation} ({provenance.validation_samples:,} inputs)",
    ]
    if provenance.domain_fit is not None:
        lines.append(f"domain fit: {provenance.domain_fit:.2f} (0.82 to 0.97 on real inputs)")
    # the claim of the tool: labels never steer the search
    if result.accuracy is not None and provenance.level != "labelled":
        lines.append("test labels were used only for the test accuracy above")
    return lines


def _result_facts(result: Result) -> list[str]:
    lines = _budget_facts(result)
    if result.method == EVOLVED and result.best_baseline is not None:
        agreement, after = result.validation_agreement, ""
        if result.scored_as is not None:
            agreement, after = result.corrected[result.scored_as].validation, " after repair"
            compensated = result.scored_as == "compensated"
            option = "--compensate" if compensated else "--repair-in-loop"
            lines.append(f"masks were selected by their scores after repair ({option})")
        lines.append(
            f"agreement on the validation inputs{after}: {percent(agreement)}, "
            f"{points(result.gain)} over the best one-shot method ({result.best_baseline})"
        )
    lines.append(
        f"{duration(result.seconds)}, {result.evaluations:,} evaluations, "
        f"seed {result.settings['seed']}; {_ENDINGS[result.stopped]}"
    )
    return lines


def _budget_facts(result: Result) -> list[str]:
    """Return the result of a budget in multiply-adds or latency, in words."""
    dense, left = result.macs["dense"], result.macs["kept"]
    if result.settings.get("budget", WEIGHTS) == WEIGHTS or dense is None or left is None:
        return []
    lines = [f"multiply-adds for one input: {dense:,} to {left:,} ({percent(left / dense)})"]
    latency = result.latency
    if latency is not None:
        parts = [f"{percent(latency['asked'])} requested"]
        if latency["predicted"] is not None:
            parts.append(f"{percent(latency['predicted'])} predicted")
        measured = latency["measured"]
        removed = "no channel was removed"
        parts.append(removed if measured is None else f"{percent(measured)} measured")
        lines.append(
            f"latency removed: {', '.join(parts)} ({latency['dense_ms']:.3g} ms to "
            f"{latency['compact_ms']:.3g} ms in {latency['runtime']} at batch {latency['batch']}, "
            f"{latency['threads']} thread(s); times vary between runs, "
            f"--budget-macs {latency['budget_macs']} repeats this search)"
        )
        if (factors := latency["speed_up"]) is not None:
            low, middle, high = factors
            lines.append(f"{middle:.2f} times as fast ({low:.2f} to {high:.2f}, quartiles)")
    return lines


def show_profile(profile: Profile) -> None:
    """Print one line per part on stderr, slowest first: Ray workers, if any, then this process."""
    heads = ("part", "share", "seconds", "calls", "ms/call", "what")
    rows = table(*heads, title="Where the time went", left=["what"])
    rows.padding = (0, 1, 0, 0)  # fits in 80 columns
    if profile.worker_count:
        _add_timings(rows, f"{profile.worker_count} workers, sum", profile.workers)
        rows.add_section()
    _add_timings(rows, "this process", profile.driver)
    Console(file=sys.stderr, highlight=False).print(rows)


def _add_timings(rows: Table, title: str, timings: Timings) -> None:
    total = timings.total
    # the first row is the sum of the others, in bold
    for part, timing in [(title, total), *timings.slowest_first()]:
        share = timing.nanoseconds / max(1, total.nanoseconds)
        calls = each = MISSING
        if timing.calls:
            milliseconds = 1e3 * timing.seconds / timing.calls
            # three significant digits, so that short and long calls fit in one column
            digits = next((n for n, least in enumerate((100, 10, 1)) if milliseconds >= least), 3)
            calls, each = f"{timing.calls:,}", f"{milliseconds:,.{digits}f}"
        name = part if timing is total else f"  {part}"
        cells = [name, f"{100 * share:.1f} %", f"{timing.seconds:,.2f}", calls, each]
        add_row(rows, [*cells, PARTS.get(part, "")], strong=timing is total)


MOST_NAMES = 4  # layers in a line


def show_dry_run(prediction: DryRun, console: Console) -> None:
    """Print layers, budget, calibration inputs, and the predicted time and memory."""
    rows = table("layer", "shape", "weights")
    for name, shape, total in prediction.layers[:MOST_LAYERS]:
        add_row(rows, [name, " x ".join(map(str, shape)), f"{total:,}"])
    if others := prediction.layers[MOST_LAYERS:]:
        add_row(rows, [f"{len(others)} more", "", f"{sum(total for *_, total in others):,}"])
    console.print(rows)
    for line in _dry_run_facts(prediction):
        console.print(line, markup=False)


def _dry_run_facts(prediction: DryRun) -> list[str]:
    keep, units = prediction.keep, prediction.units
    budget = f"found by search, of {units:,} {prediction.unit}"
    if keep is not None:
        budget = f"{keep:,} of {units:,} {prediction.unit} ({percent(1 - keep / units)} removed)"
    why = f", chosen by auto: {prediction.why}" if prediction.why else ""
    lines = [
        f"prunable: {prediction.total:,} of {prediction.parameters:,} parameters",
        *([] if prediction.coverage is None else [prediction.coverage]),
        f"kept: {budget}",
        f"calibration inputs: {' and '.join(prediction.calibration)}{why}",
    ]
    by_reason: dict[str, list[str]] = {}
    for name, reason in prediction.whole:
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        lines.append(f"left whole: {', '.join(names[:MOST_NAMES])}{more}: {reason}")
    for phase in prediction.phases:
        steps = f" with {phase.steps} gradient steps" if phase.steps else ""
        count = phase.generations
        generations = "generations until a limit" if count is None else f"{count} generations"
        lines.append(f"{phase.name}: {generations} of {phase.children} children{steps}")
    if not prediction.phases:
        lines.append("one-shot method, no search")
    elif prediction.search_seconds is None:
        each = sum(phase.seconds for phase in prediction.phases if phase.generations is None)
        lines.append(f"time: about {duration(each)} per generation at the machine's current speed")
    else:
        several = prediction.settings.max_drop is not None
        what = "each search (about five)" if several else "the search"
        lines.append(f"time of {what}: about {duration(prediction.search_seconds)}")
    lines.append(
        f"memory: about {prediction.peak_mb:,.0f} MB per worker; not included: making "
        "calibration inputs, and criteria"
    )
    lines.append("nothing was pruned (--dry-run)")
    return lines
