"""The page of a comparison: every method at every sparsity, and what each method needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gaprune.formatting import MISSING, duration, percent, points
from gaprune.report.charts import Axis, Chart, Point, Series
from gaprune.report.curves import tick_percent
from gaprune.report.headline import EVOLVED, Figure, Headline
from gaprune.report.next_steps import NextStep
from gaprune.report.render import render
from gaprune.report.scales import Fractions, Log

VISIBLE = 7  # methods that are drawn before the reader switches on more


@dataclass(frozen=True)
class SparsityScore:
    """The score of a method at one sparsity: median, lowest and highest over seeds.

    `removed` is the fraction of weights that it really removed.
    """

    score: float
    low: float
    high: float
    seeds: int
    removed: float


@dataclass(frozen=True)
class MethodScores:
    """One method of a comparison."""

    name: str  # of the method
    needs: str  # what data and training it needs, in words
    trains: bool  # whether it trains weights
    corrects: bool  # whether it changes what it keeps in closed form
    scores: Mapping[float, SparsityScore]  # sparsity → score
    effort: str  # what the highest sparsity took, in words
    seconds: float  # the same in time


@dataclass(frozen=True)
class ComparisonPage:
    """The content of the page."""

    target: str  # what was pruned
    measure: str  # `accuracy`, or `agreement` where there are no labels
    caption: str  # what the scores are, in a sentence
    dense: float | None  # accuracy of the dense network, or None
    methods: Sequence[MethodScores]  # in the order of the table
    notes: Sequence[str] = ()  # below the table
    config: str = ""  # settings that repeat the comparison, as TOML; may be empty
    # names and values that identify the comparison
    facts: Sequence[tuple[str, str]] = field(default=())
    steps: Sequence[NextStep] = ()  # what a reader does next
    removed: str = "weights"  # what sparsity is a fraction of: weights, blocks or channels

    @property
    def sparsities(self) -> list[float]:
        """All sparsities, ascending."""
        return sorted({sparsity for method in self.methods for sparsity in method.scores})

    def ranked(self, sparsity: float) -> list[MethodScores]:
        """Return the methods with a score at a sparsity, the best first."""
        methods = [method for method in self.methods if sparsity in method.scores]
        return sorted(methods, key=lambda method: -method.scores[sparsity].score)


def comparison_page(page: ComparisonPage) -> str:
    """Return the page as HTML."""
    content = {
        "title": f"{page.target}: gaprune comparison",
        "top": _headline(page),
        "page": page,
        "steps": page.steps,
        "chart": _chart(page) if page.sparsities else None,
        "effort": _effort_chart(page) if page.sparsities else None,
        "rows": [
            (method, [_cell(method.scores.get(sparsity)) for sparsity in page.sparsities])
            for method in page.methods
        ],
    }
    return render("comparison.html", content)


def _headline(page: ComparisonPage) -> Headline:
    if not page.sparsities:
        lead = f"{len(page.methods)} methods to prune {page.target}; none of them has a score."
        return Headline(page.target, lead, (), (page.caption,))
    last = page.sparsities[-1]
    ranked = page.ranked(last)
    # Methods that change weights or statistics are not comparable with those that keep them.
    untrained = [method for method in ranked if not method.trains and not method.corrects]
    best = untrained[0] if untrained else ranked[0]
    lead = (
        f"With {percent(last)} of the {page.removed} of {page.target} removed, {best.name} is the "
        f"best of {len(page.methods)} methods{' without training' if untrained else ''}: "
        f"{percent(best.scores[last].score)} {page.measure}."
    )
    figures = [Figure("Sparsity", percent(last), "the highest in the comparison")]
    if page.dense is not None:
        figures.append(Figure("Dense network", percent(page.dense), page.measure))
    evolved = next((method for method in ranked if method.name == EVOLVED), None)
    others = [method for method in untrained if method is not evolved]
    if evolved is not None:
        figures.append(Figure("Evolved", percent(evolved.scores[last].score), evolved.needs))
    if evolved is not None and others:
        gain = evolved.scores[last].score - others[0].scores[last].score
        value, unit = points(gain).split(" ", 1)
        text = f"{unit} over {others[0].name}, the best other method without training"
        figures.append(Figure("Gain", value, text))
    corrected = next((method for method in ranked if method.corrects), None)
    if corrected is not None:
        text = f"{corrected.name}, the best method with a correction ({corrected.needs})"
        figures.append(Figure("Corrected", percent(corrected.scores[last].score), text))
    trained = next((method for method in ranked if method.trains), None)
    if trained is not None:
        text = f"{trained.name}, the best method that trains weights ({trained.needs})"
        figures.append(Figure("With training", percent(trained.scores[last].score), text))
    return Headline(page.target, lead, tuple(figures), (page.caption,))


def _chart(page: ComparisonPage) -> Chart:
    scores = [score for method in page.methods for score in method.scores.values()]
    values, removed = [score.score for score in scores], [score.removed for score in scores]
    references = []
    if page.dense is not None:
        values.append(page.dense)
        references = [(page.dense, f"dense, {percent(page.dense)}")]
    # Many lines are unreadable: draw the best at the highest sparsity, where methods differ.
    best = page.ranked(page.sparsities[-1])[: VISIBLE - 1]
    visible = {EVOLVED, *(method.name for method in best)}
    # The evolved masks come first, so that they have the first colour.
    ordered = sorted(page.methods, key=lambda method: method.name != EVOLVED)
    series = [
        Series(
            method.name,
            [_point(score) for _, score in sorted(method.scores.items())],
            style,
            visible=method.name in visible,
            highlighted=method.name == EVOLVED,
        )
        for style, method in enumerate(ordered)
        if method.scores
    ]
    return Chart(
        f"{page.measure.capitalize()} against sparsity",
        Axis("weights removed", Fractions.around(removed), tick_percent, page.sparsities, percent),
        Axis(page.measure, Fractions.around(values), tick_percent, exact=percent),
        series,
        note="Medians over seeds; bars show the lowest and the highest.",
        references=references,
        height=400,
    )


def _point(score: SparsityScore) -> Point:
    text = f"at {tick_percent(round(score.removed, 4))}: {percent(score.score)}"
    # A single seed has no spread to show.
    if score.seeds == 1:
        return Point(score.removed, score.score, text)
    text += f" ({percent(score.low)} to {percent(score.high)} over {score.seeds} seeds)"
    return Point(score.removed, score.score, text, score.low, score.high)


def _effort_chart(page: ComparisonPage) -> Chart | None:
    """Return score against time at the highest sparsity."""
    last = page.sparsities[-1]
    ranked = [method for method in page.ranked(last) if method.seconds > 0]
    # One point compares nothing.
    if len(ranked) < 2:
        return None
    groups: dict[str, list[Point]] = {EVOLVED: [], "without training": [], "with training": []}
    for method in sorted(ranked, key=lambda method: method.seconds):
        training = "with training" if method.trains else "without training"
        score = method.scores[last].score
        text = f"{method.name}: {percent(score)} in {duration(method.seconds)}"
        group = EVOLVED if method.name == EVOLVED else training
        groups[group].append(Point(method.seconds, score, text))
    series = [
        Series(name, dots, style, joined=False, highlighted=name == EVOLVED)
        for style, (name, dots) in enumerate(groups.items())
        if dots
    ]
    scores = [method.scores[last].score for method in ranked]
    return Chart(
        "Time",
        Axis("seconds", Log.around([method.seconds for method in ranked], gain=1.6)),
        Axis(page.measure, Fractions.around(scores), tick_percent, exact=percent),
        series,
        note=f"At sparsity {tick_percent(last)}, on this machine.",
        height=260,
    )


def _cell(score: SparsityScore | None) -> str:
    if score is None:
        return MISSING
    # Half the range over seeds, in percentage points.
    spread = f" ±{50 * (score.high - score.low):.1f}" if score.seeds > 1 else ""
    return f"{100 * score.score:.1f}{spread}"
