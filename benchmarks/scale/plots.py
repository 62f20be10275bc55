"""Curves over the number of workers, both axes logarithmic, as an SVG of a few lines. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 760, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 230, 40, 50
_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#AA3377", "#66CCEE")

Points = Sequence[tuple[float, float]]


def plot(title: str, unit: str, curves: Mapping[str, Points]) -> str:
    """The curves, each with its name at the right; values above 0."""
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points if y > 0]
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    last = math.log10(max(xs))

    def place(x: float, y: float) -> tuple[float, float]:
        right = _LEFT + math.log10(x) / last * (_WIDTH - _LEFT - _RIGHT)
        down = _TOP + (high - math.log10(max(y, 10.0**low))) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        return round(right, 1), round(down, 1)

    parts = [f'<text x="{_LEFT}" y="22" font-size="15">{escape(title)}</text>']
    for power in range(low, high + 1):
        x, y = place(1, 10.0**power)
        parts.append(f'<line x1="{x}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}" stroke="#ddd"/>')
        label = f"{10.0**power:,g} {unit}".replace("e+0", "e")
        parts.append(f'<text x="{x - 8}" y="{y + 4}" text-anchor="end">{escape(label)}</text>')
    for power in range(math.ceil(last) + 1):
        x, y = place(10.0**power, 10.0**low)
        parts.append(f'<text x="{x}" y="{y + 20}" text-anchor="middle">{10**power:,}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 10}" text-anchor="middle">workers</text>')
    labels = _spread({name: place(*points[-1])[1] for name, points in curves.items()})
    for colour, (name, points) in zip(_COLOURS, curves.items(), strict=False):
        line = " ".join(f"{x},{y}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, y in (place(*point) for point in points):
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
        parts.append(f'<text x="{_WIDTH - _RIGHT + 10}" y="{labels[name] + 4}" fill="{colour}">{escape(name)}</text>')
    style = 'font-family="sans-serif" font-size="12"'
    background = f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>'
    body = "\n".join((background, *parts))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" {style}>'
    return f"{head}\n<title>{escape(title)}</title>\n{body}\n</svg>\n"


def _spread(heights: Mapping[str, float]) -> dict[str, float]:
    """The same, moved down where two would stand on one another."""
    found: dict[str, float] = {}
    below = -math.inf
    for name, height in sorted(heights.items(), key=lambda each: each[1]):
        found[name] = below = max(height, below + 15)
    return found
