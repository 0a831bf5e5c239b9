"""Plots as SVG, for a page that needs nothing else. Pure."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from math import ceil, floor, log10

from kvmnet.records import dataclass

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b6b6b", "#7a5c00")
"""M. Okabe, K. Ito: told apart by all kinds of eyes, and in print."""
WIDTH = 720
LABELS = 210
"""Width of the column of names."""
LETTERS = 28
"""Letters that fit into it: 12 pixels high they are about 7 wide."""
WIDEST = 110
"""Width of a cell of the heat map at most."""


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    value: float
    low: float
    high: float
    """Least and greatest of the rounds."""
    remark: str = ""


def number(value: float) -> str:
    """A number for people: four digits, no exponent."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 3 - floor(log10(abs(value))))}f}".rstrip("0").rstrip(".") if abs(value) >= 0.001 else f"{value:.1e}"


def ticks(most: float, about: int = 5) -> list[float]:
    """Round numbers from 0 to a little above *most*."""
    if most <= 0:
        return [0.0, 1.0]
    raw = most / about
    scale = 10.0 ** floor(log10(raw))
    step = next(s * scale for s in (1, 2, 5, 10) if s * scale >= raw * 0.999)
    return [i * step for i in range(ceil(most / step - 1e-9) + 1)]


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}"' + (f' text-anchor="{anchor}"' if anchor != "start" else "")
            + (f' class="{kind}"' if kind else "") + f">{escape(words)}</text>")


def label(y: float, words: str) -> str:
    """A name in the column of names, on two lines when it is long; tables have the whole of one that is longer still."""
    lines = wrapped(words, LETTERS)
    rest = " ".join(lines[1:])
    if len(lines) == 1:
        return text(LABELS - 8, y + 4, words, "end")
    return text(LABELS - 8, y - 2, lines[0], "end", "tick") + text(LABELS - 8, y + 10, rest if len(rest) <= LETTERS + 2 else f"{rest[:LETTERS]}…", "end", "tick")


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def svg(height: float, title: str, parts: Iterable[str]) -> str:
    return (f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
            f"<title>{escape(title)}</title>{''.join(parts)}</svg>")


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars of the medians, with the range of the rounds."""
    each, top, right = 30, 6, 205
    marks = ticks(max(r.high for r in rows))
    room = WIDTH - LABELS - right
    floor_y = top + each * len(rows)

    def x(value: float) -> float:
        return LABELS + value / marks[-1] * room

    def drawn() -> Iterator[str]:
        for mark in marks:
            yield line(x(mark), top, x(mark), floor_y, "grid")
            yield text(x(mark), floor_y + 15, number(mark), "middle", "tick")
        for i, row in enumerate(rows):
            y = top + each * i + each / 2
            yield label(y, row.label)
            yield (f'<rect x="{LABELS}" y="{y - 8:.1f}" width="{max(0.0, x(row.value) - LABELS):.1f}" height="16" '
                   f'fill="{COLOURS[i % len(COLOURS)]}"/>')
            yield line(x(row.low), y, x(row.high), y, "whisker")
            yield line(x(row.low), y - 5, x(row.low), y + 5, "whisker") + line(x(row.high), y - 5, x(row.high), y + 5, "whisker")
            yield text(x(row.high) + 8, y + (0 if row.remark else 4), number(row.value), "start", "value")
            if row.remark:
                yield text(x(row.high) + 8, y + 12, row.remark, "start", "tick")
        yield line(LABELS, top, LABELS, floor_y, "axis")
    return svg(floor_y + 24, title, drawn())


Curve = Sequence[tuple[float, float]]
"""(value, share of all that do not exceed it), rising."""


def cdf(title: str, unit: str, curves: Sequence[tuple[str, Curve]]) -> str:
    """Distributions of times. Across a logarithmic scale; upwards so that each further nine has the same room, as it is the
    slow ones that hurt."""
    left, top, height, bottom = 60, 8, 250, 40
    values = [v for _, curve in curves for v, _ in curve]
    first, last = floor(log10(max(min(values), 1e-9))), ceil(log10(max(values)))
    last = max(last, first + 1)
    nines = ((0.0, "0"), (0.5, "50%"), (0.9, "90%"), (0.99, "99%"), (0.999, "99.9%"), (0.9999, "99.99%"))

    def x(value: float) -> float:
        return left + (log10(max(value, 10.0 ** first)) - first) / (last - first) * (WIDTH - left - 20)

    def y(share: float) -> float:
        return top + height - min(-log10(max(1 - share, 1e-4)), 4) / 4 * height

    def drawn() -> Iterator[str]:
        for share, name in nines:
            yield line(left, y(share), WIDTH - 20, y(share), "grid") + text(left - 6, y(share) + 4, name, "end", "tick")
        for power in range(first, last + 1):
            yield line(x(10.0 ** power), top, x(10.0 ** power), top + height, "grid")
            yield text(x(10.0 ** power), top + height + 15, number(10.0 ** power), "end" if power == last else "middle", "tick")
        yield text(WIDTH - 20, top + height + 30, unit, "end", "tick")
        for i, (name, curve) in enumerate(curves):
            points, before = [], 0.0
            for value, share in curve:
                points += [(x(value), y(before)), (x(value), y(share))]
                before = share
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in thinned(points))
            dash = ("", "7 3", "2 3", "9 3 2 3")[i % 4]
            yield (f'<polyline points="{path}" fill="none" stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="2"'
                   + (f' stroke-dasharray="{dash}"' if dash else "") + "/>")
            yield (f'<rect x="{left + 12}" y="{top + 6 + 18 * i}" width="14" height="10" fill="{COLOURS[i % len(COLOURS)]}"/>'
                   + text(left + 32, top + 15 + 18 * i, name))
        yield line(left, top, left, top + height, "axis") + line(left, top + height, WIDTH - 20, top + height, "axis")
    return svg(top + height + bottom, title, drawn())


def thinned(points: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Points that the eye can tell apart, and the last."""
    last: tuple[float, float] | None = None
    for point in points:
        if last is None or abs(point[0] - last[0]) + abs(point[1] - last[1]) > 0.7:
            yield point
            last = point
    if points and last != points[-1]:
        yield points[-1]


@dataclass(frozen=True, slots=True)
class Square:
    """A cell of the heat map: *degree* from -1 (much worse) to 1 (much better), None for no difference shown."""

    words: str
    degree: float | None


def heat_map(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Square]]]) -> str:
    """Configurations against loads. The words say it too, so colour is not all."""
    head, each, left = 88, 30, LABELS
    width = min(WIDEST, (WIDTH - left) / max(1, len(columns)))

    def drawn() -> Iterator[str]:
        for i, name in enumerate(columns):
            for k, word in enumerate(wrapped(name, max(6, int(width / 6.2)))[:5]):
                yield text(left + width * (i + 0.5), 14 + 14 * k, word, "middle", "tick")
        for j, (name, squares) in enumerate(rows):
            y = head + each * j
            yield label(y + each / 2, name)
            for i, square in enumerate(squares):
                yield (f'<rect x="{left + width * i + 1:.1f}" y="{y + 1}" width="{width - 2:.1f}" height="{each - 2}" rx="2" '
                       f'fill="{shade(square.degree)}"/>')
                yield text(left + width * (i + 0.5), y + each / 2 + 4, square.words, "middle",
                           "onshade" if square.degree is not None and abs(square.degree) > 0.55 else "cell")
    return svg(head + each * len(rows) + 4, title, drawn())


def wrapped(words: str, width: int) -> list[str]:
    lines = [""]
    for word in words.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def shade(degree: float | None) -> str:
    """From orange (worse) over light to blue (better); grey for no difference."""
    if degree is None:
        return "#e9e9e9"
    end = (0, 114, 178) if degree > 0 else (213, 94, 0)
    part = 0.2 + 0.8 * min(1.0, abs(degree))
    return "#" + "".join(f"{round(255 + (colour - 255) * part):02x}" for colour in end)
