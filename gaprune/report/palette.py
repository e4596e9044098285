"""The colours of a report, light and dark; tests check their contrast."""

from __future__ import annotations

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "page": "#f7f6f2",
    "card": "#ffffff",
    "ink": "#1c2024",
    "soft": "#59606a",
    "line": "#dcd9d0",
    "grid": "#ebe8e0",
    "accent": "#0b6e5d",
    "tint": "#e3f1ed",
    "s0": "#0b6e5d",
    "s1": "#a54a06",
    "s2": "#2563b8",
    "s3": "#a3317a",
    "s4": "#6b6f12",
    "s5": "#6941c6",
    "s6": "#b3261e",
    "s7": "#59606a",
}
DARK: Mapping[str, str] = {
    "page": "#121518",
    "card": "#1a1f23",
    "ink": "#eceae4",
    "soft": "#a8aeb5",
    "line": "#343b41",
    "grid": "#272d32",
    "accent": "#52cfb2",
    "tint": "#17322d",
    "s0": "#52cfb2",
    "s1": "#f3a35c",
    "s2": "#84b4f5",
    "s3": "#ee8fc9",
    "s4": "#cfcf5d",
    "s5": "#b9a3f8",
    "s6": "#f58f86",
    "s7": "#a8aeb5",
}
SERIES = 8  # colours s0 to s7; later series repeat them with another marker


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of two `#rrggbb` colours, 1 to 21 (WCAG 2.2, section 1.4.3)."""
    lighter, darker = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def as_css() -> str:
    """Return both sets as CSS variables: the system's theme, unless the reader chooses another.

    Printed pages are light.
    """
    light, dark = (
        "".join(f"--{name}:{value};" for name, value in colours.items())
        for colours in (LIGHT, DARK)
    )
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light])"
        f"{{color-scheme:dark;{dark}}}}}\n"
        f"@media screen{{:root[data-theme=dark]{{color-scheme:dark;{dark}}}}}\n"
    )


def _luminance(colour: str) -> float:
    parts = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
