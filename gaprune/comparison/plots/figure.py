"""Figures in one style, written as files of equal bytes for equal data."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaprune.errors import GapruneError, InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS: dict[str, dict[str, Any]] = {  # suffix → arguments of savefig: no date, no version
    ".svg": {"format": "svg", "metadata": {"Date": None, "Creator": None}},
    ".png": {"format": "png", "metadata": {"Software": None}, "dpi": 160},
}
STYLE: Any = {  # matplotlib types every key on its own
    "svg.hashsalt": "gaprune",  # ids are random without it
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's colours, which all kinds of colour vision can tell apart, without yellow."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""One more than colours: counted together, their pairs repeat only after 42."""
MUTED = "0.45"  # reference lines and their labels


@contextmanager
def drawing(path: str | Path, width: float, height: float) -> Iterator[Figure]:
    """Yield an empty figure, and write it when the block ends; no global style is changed.

    `path` is a .svg or .png in an existing folder; `width` and `height` are in inches.

    Raises:
        InputError: another suffix.
        GapruneError: matplotlib is missing, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"path: a plot is saved as {' or '.join(FORMATS)}, got {path}")
    try:
        import matplotlib as mpl  # noqa: PLC0415 - optional, so imported where it is used
        from matplotlib.figure import Figure  # noqa: PLC0415 - the same
    except ImportError as error:
        raise GapruneError("plot: needs matplotlib; pip install 'gaprune[compare]'") from error
    content = io.BytesIO()
    with mpl.rc_context():
        mpl.rcdefaults()  # ignore the user's own style
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(content, **FORMATS[path.suffix.lower()])
    try:
        path.write_bytes(content.getvalue())
    except OSError as error:
        raise GapruneError(
            f"path: cannot write {path} ({error.strerror or error}); name a file in an existing "
            "folder that you may write to"
        ) from error
