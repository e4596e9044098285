"""The page of a comparison: every method at every sparsity, and what each had to be given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gaprune.formatting import MISSING, duration, percent, points
from gaprune.report.charts import Axis, Chart, Frame, Point, Series, draw
from gaprune.report.curves import whole
from gaprune.report.headline import EVOLVED, Figure, Headline
from gaprune.report.render import render
from gaprune.report.scales import Log, Parts

SHOWN = 7  # methods that are drawn before the reader asks for more


@dataclass(frozen=True)
class SparsityScore:
    """How a method does at one sparsity: median, worst and best over seeds."""

    score: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class MethodScores:
    """One method.

    Attributes:
        name: of the method.
        needs: what it had to be given, in words.
        trains: whether it changes weights.
        scores: sparsity → how it does.
        effort: what the highest sparsity took, in words.
        seconds: the same in time.
        error: why a figure is missing, or None.
    """

    name: str
    needs: str
    trains: bool
    scores: Mapping[float, SparsityScore]
    effort: str
    seconds: float
    error: str | None


@dataclass(frozen=True)
class ComparisonPage:
    """What a comparison found.

    Attributes:
        target: what was pruned.
        measure: `accuracy`, or agreement where nobody has labels.
        caption: what the figures are, in a sentence.
        dense: accuracy of the dense network, or None.
        removed: what sparsities are parts of: weights, blocks or channels.
        methods: in the order of the table.
        notes: what a reader of the table must know.
        config: what repeats it, as TOML; may be empty.
        facts: what identifies it, in pairs.
        folder: what its folder is called.
    """

    target: str
    measure: str
    caption: str
    dense: float | None
    methods: Sequence[MethodScores]
    notes: Sequence[str] = ()
    config: str = ""
    facts: Sequence[tuple[str, str]] = field(default=())
    folder: str = ""
    removed: str = "weights"


def comparison_page(contest: ComparisonPage) -> str:
    """Return the page as text."""
    sparsities = sorted({one for method in contest.methods for one in method.scores})
    return render(
        "comparison.html",
        {
            "title": f"{contest.target}: gaprune comparison",
            "top": _headline(contest, sparsities),
            "contest": contest,
            "chart": _chart(contest, sparsities) if sparsities else None,
            "effort": _effort(contest, sparsities) if sparsities else None,
            "sparsities": sparsities,
            "rows": _rows(contest, sparsities),
        },
    )


def _headline(contest: ComparisonPage, sparsities: Sequence[float]) -> Headline:
    figures, remarks = [], [contest.caption]
    lead = f"{len(contest.methods)} ways to prune {contest.target}; none of them has a figure."
    if sparsities:
        last = sparsities[-1]
        ranked = _ranked(contest, last)
        still = [one for one in ranked if not one.trains]
        best = still[0] if still else ranked[0]
        lead = (
            f"Of {len(contest.methods)} ways to remove {percent(last)} of the {contest.removed} of "
            f"{contest.target}, {best.name} keeps most{' without training' if still else ''}: "
            f"{percent(best.scores[last].score)} {contest.measure}."
        )
        figures.append(Figure("Sparsity", percent(last), "the highest that was compared"))
        if contest.dense is not None:
            figures.append(Figure("Dense", percent(contest.dense), contest.measure))
        figures += _margins(contest, ranked, last)
    return Headline(contest.target, lead, tuple(figures), tuple(remarks))


def _ranked(contest: ComparisonPage, sparsity: float) -> list[MethodScores]:
    there = [one for one in contest.methods if sparsity in one.scores]
    return sorted(there, key=lambda one: -one.scores[sparsity].score)


def _margins(contest: ComparisonPage, ranked: Sequence[MethodScores], last: float) -> list[Figure]:
    found = []
    own = next((one for one in ranked if one.name == EVOLVED), None)
    others = [one for one in ranked if one is not own and not one.trains]
    if own is not None:
        found.append(Figure("Evolved", percent(own.scores[last].score), own.needs))
    if own is not None and others:
        gain = own.scores[last].score - others[0].scores[last].score
        words = f"above {others[0].name}, the best of the others without training"
        found.append(Figure("Margin", points(gain), words))
    trained = next((one for one in ranked if one.trains), None)
    if trained is not None:
        words = f"{trained.name}, the best that trains weights ({trained.needs})"
        found.append(Figure("With training", percent(trained.scores[last].score), words))
    return found


def _chart(contest: ComparisonPage, sparsities: Sequence[float]) -> Chart:
    values = [one.score for method in contest.methods for one in method.scores.values()]
    values += [] if contest.dense is None else [contest.dense]
    first = {one.name for one in _ranked(contest, sparsities[-1])[: SHOWN - 1]} | {EVOLVED}
    x = Axis("sparsity", Parts.around(sparsities), whole, ticks=sparsities)
    y = Axis(contest.measure, Parts.around(values), whole, exact=percent)
    rules = [] if contest.dense is None else [(contest.dense, f"dense, {percent(contest.dense)}")]
    ordered = sorted(contest.methods, key=lambda one: one.name != EVOLVED)
    series = [
        Series(
            one.name,
            [_point(sparsity, score) for sparsity, score in sorted(one.scores.items())],
            look,
            shown=one.name in first,
            strong=one.name == EVOLVED,
        )
        for look, one in enumerate(ordered)
        if one.scores
    ]
    title = f"{contest.measure.capitalize()} against sparsity"
    note = (
        "Medians; bars go from the worst seed to the best. Both axes are logarithmic: in the "
        f"{contest.removed} that stay, and in what is missing to 100 %."
    )
    return draw(Frame(title, x, y, note=note, rules=rules, height=400), series)


def _point(sparsity: float, score: SparsityScore) -> Point:
    spread = ""
    if score.seeds > 1:
        spread = f" ({percent(score.low)} to {percent(score.high)} over {score.seeds} seeds)"
    several = score.seeds > 1
    return Point(
        sparsity,
        score.score,
        f"at {whole(sparsity)}: {percent(score.score)}{spread}",
        score.low if several else None,
        score.high if several else None,
    )


def _effort(contest: ComparisonPage, sparsities: Sequence[float]) -> Chart | None:
    """Return what the highest sparsity took, against how well it went."""
    last = sparsities[-1]
    ranked = [one for one in _ranked(contest, last) if one.seconds > 0]
    if len(ranked) < 2:
        return None
    x = Axis("seconds", Log.around([one.seconds for one in ranked], gain=1.6))
    scores = [one.scores[last].score for one in ranked]
    y = Axis(contest.measure, Parts.around(scores), whole, exact=percent)
    groups = {
        "evolved": [one for one in ranked if one.name == EVOLVED],
        "without training": [one for one in ranked if one.name != EVOLVED and not one.trains],
        "with training": [one for one in ranked if one.name != EVOLVED and one.trains],
    }
    series = [
        Series(
            name,
            [
                Point(
                    one.seconds,
                    one.scores[last].score,
                    f"{one.name}: {percent(one.scores[last].score)} in {duration(one.seconds)}",
                )
                for one in sorted(own, key=lambda one: one.seconds)
            ],
            look,
            joined=False,
            strong=name == "evolved",
        )
        for look, (name, own) in enumerate(groups.items())
        if own
    ]
    note = f"At {whole(last)} sparsity. The axes are logarithmic; times are of this machine."
    return draw(Frame("What it took", x, y, note=note, height=260), series)


def _rows(
    contest: ComparisonPage, sparsities: Sequence[float]
) -> list[tuple[MethodScores, list[str]]]:
    return [
        (one, [_text(one.scores.get(sparsity)) for sparsity in sparsities])
        for one in contest.methods
    ]


def _text(score: SparsityScore | None) -> str:
    if score is None:
        return MISSING
    spread = f" ±{50 * (score.high - score.low):.1f}" if score.seeds > 1 else ""
    return f"{100 * score.score:.1f}{spread}"
