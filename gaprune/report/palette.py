"""The colours of a report, light and dark; tests check their contrast."""

from __future__ import annotations

_COLOURS = {  # CSS variable → light, dark
    "page": ("#f7f6f2", "#121518"),
    "card": ("#ffffff", "#1a1f23"),
    "ink": ("#1c2024", "#eceae4"),
    "soft": ("#59606a", "#a8aeb5"),
    "line": ("#dcd9d0", "#343b41"),
    "grid": ("#ebe8e0", "#272d32"),
    "accent": ("#0b6e5d", "#52cfb2"),
    "tint": ("#e3f1ed", "#17322d"),
    "s0": ("#0b6e5d", "#52cfb2"),
    "s1": ("#a54a06", "#f3a35c"),
    "s2": ("#2563b8", "#84b4f5"),
    "s3": ("#a3317a", "#ee8fc9"),
    "s4": ("#6b6f12", "#cfcf5d"),
    "s5": ("#6941c6", "#b9a3f8"),
    "s6": ("#b3261e", "#f58f86"),
    "s7": ("#59606a", "#a8aeb5"),
}
LIGHT = {name: light for name, (light, _) in _COLOURS.items()}
DARK = {name: dark for name, (_, dark) in _COLOURS.items()}
SERIES = 8  # colours s0 to s7; later series repeat them with another marker


def as_css() -> str:
    """Return both sets as CSS variables: the system's theme, unless the reader chooses another.

    Printed pages are light.
    """
    light, dark = (
        "".join(f"--{name}:{value};" for name, value in colours.items())
        for colours in (LIGHT, DARK)
    )
    # The reader's choice overrides the theme of the system, and paper is always light.
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light])"
        f"{{color-scheme:dark;{dark}}}}}\n"
        f"@media screen{{:root[data-theme=dark]{{color-scheme:dark;{dark}}}}}\n"
    )
