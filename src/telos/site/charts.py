"""The page's charts: pure functions from a result's dictionaries to one SVG each.

Colours, line widths and type come from static/charts.css through classes, so one drawing serves light, dark and print.
No drawing has ids or style attributes; each has a title and a sentence with its numbers for screen readers.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from scipy import special

from telos.judge.report import number, with_interval
from telos.judge.stats import LEVEL, Floats
from telos.site import content

COLOURS = 8
"""--c0 to --c7; further series take them again, with another dash and marker."""
WIDTH = 360
"""User units across a panel of `curves` or a `plane`: a phone's column, so that 12 px of type stay above 10."""
NARROW = 340
"""The width for which `dots` breaks lines and shortens labels where it is not told one, px."""
TYPE = 11
"""Size at which the table of widths (of a wide face) measures the page's 12 px type."""
LINE = 16
"""Height of a line of type, px."""


@dataclass(frozen=True)
class Axis:
    """Maps values from `low` to `high` onto pixels from `start` to `end`, linearly."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)

    def path(self, value: float) -> str:
        return _px(self(value))


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from `low` to `high` (low < high), at most `most` steps apart."""
    magnitude = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(m * magnitude for m in (1, 2, 5, 10) if (high - low) / (m * magnitude) <= most * (1 + 1e-9))
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """The ticks with as many decimals as their step needs; very large and small ones as `number` writes them."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(ticks[0]) if ticks and ticks[0] else 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if decimals <= 4 and max(map(abs, ticks), default=0) < 1e6:
        return [f"{tick:.{decimals}f}" for tick in ticks]
    texts = [number(tick) for tick in ticks]
    return texts if len(set(texts)) == len(texts) else [f"{tick:.10g}" for tick in ticks]


def effect_bar(part: Mapping[str, Any]) -> Markup | None:
    """One part as a bar of 168 x 22: its interval, estimate, zero (solid) and margin or bounds (dashed).

    None for an exact part, which has no interval. A Threshold shows zero only where it is near what was measured.
    """
    stated, interval = part["part"], part["interval"]
    if interval is None or not all(math.isfinite(interval[key]) for key in ("estimate", "low", "high")):
        return None
    estimate, low, high = interval["estimate"], interval["low"], interval["high"]
    bounds = _bounds(stated)
    shown = [estimate, low, high, *bounds]
    span = max(shown) - min(shown)
    zero = stated["kind"] != "Threshold" or min(shown) - span <= 0 <= max(shown) + span
    x = Axis(*_range([*shown, 0.0] if zero else shown), 6, 162)
    body = [f'<path class="zero" d="M{x.path(0)} 1V21"/>'] if zero else []
    body += [f'<path class="bound" d="M{x.path(bound)} 2V20"/>' for bound in bounds]
    if high > low:
        body.append(f'<path class="bar" d="M{x.path(low)} 11H{x.path(high)}"/>')
    body.append(f'<circle class="dot" cx="{x.path(estimate)}" cy="11" r="4"/>')
    held = " and ".join(map(number, bounds or [0.0]))
    words = f"{with_interval(estimate, interval)}, held against {held}: {part['status']}"
    kind = f"chart-effect {part['status'].replace(' ', '-')}"
    return _svg(kind, 168, 22, part.get("text", ""), words, body)


def dots(result: Mapping[str, Any], metric: str, *, width: int | None = None) -> Markup | None:
    """A row an arm that has `metric`: each seed a dot, the mean a stroke on its 95 % interval, bounds dashed.

    It takes the whole width of its place (or `width` px) without scaling its type: places along the axis are shares of
    the width. Dots of equal value are stacked. None where no arm has the metric.
    """
    arms = {name: result["arms"][name] for name in result["order"] if metric in result["arms"][name]["summary"]}
    if not arms:
        return None
    colour = {name: index for name, (index, _) in _styles(result, arms).items()}
    if not any(arm["group"] for arm in result["arms"].values()) and _increasing_key(result) is None:
        colour = dict.fromkeys(arms, 0)  # neither groups nor curves that the colours could tell apart
    stated = [part["part"] for part in result["parts"]]
    bounds = {
        name: {b for p in stated if p["kind"] == "Threshold" and (p["a"], p["metric"]) == (name, metric)
               for b in _bounds(p)}
        for name in arms
    }  # fmt: skip
    seeds = {name: [run["measures"][metric] for run in arm["runs"]] for name, arm in arms.items()}
    intervals = {name: arm["summary"][metric]["interval"] for name, arm in arms.items()}
    ends = [interval[key] for interval in intervals.values() if interval for key in ("low", "high")]
    x = Axis(*_range([*ends, *(v for some in (*seeds.values(), *bounds.values()) for v in some)]), 0, 1000)

    row, bottom = 44, 44 * len(arms)
    ticks = nice_ticks(x.low, x.high)
    grid = (f"M{x.path(tick)} {row * index + 19}v20" for index in range(len(arms)) for tick in ticks)
    drawn = [f'<path class="grid" d="{"".join(grid)}"/>']
    texts, words = [], []
    for index, (name, arm) in enumerate(arms.items()):
        top, middle = index * row, index * row + 29
        mean, interval = arm["summary"][metric]["mean"], intervals[name]
        drawn.append(f'<g class="c{colour[name]}">')
        if interval:
            drawn.append(f'<path class="bar" d="M{x.path(interval["low"])} {middle}H{x.path(interval["high"])}"/>')
        places = "".join(f"M{_px(left)} {_px(middle + lift)}h0" for left, lift in _stacked(map(x, seeds[name])))
        drawn.append(f'<path class="seeds" d="{places}"/><path class="mean" d="M{x.path(mean)} {middle - 9}v18"/></g>')
        drawn += [f'<path class="bound" d="M{x.path(bound)} {middle - 10}v20"/>' for bound in sorted(bounds[name])]
        value = with_interval(mean, interval)
        label = _shorten(arm["label"], (width or NARROW) - text_width(value, TYPE) - 12)
        texts.append(_text(0, top + 13, label, "name", full=arm["label"]))
        texts.append(_text("100%", top + 13, value, "value", "end"))
        words.append(f"{arm['label']} {value}" + "".join(f", bound {number(b)}" for b in sorted(bounds[name])))
    for tick, text in zip(ticks, tick_texts(ticks), strict=True):
        share = x(tick) / 1000
        wide = text_width(text, TYPE) > 30
        anchor = "start" if wide and share < 0.03 else "end" if wide and share > 0.97 else "middle"
        texts.append(_text(f"{_px(2 + 96 * share)}%", bottom + 14, text, "tick", anchor))
    meaning = result["claim"]["metrics"].get(metric, "")
    label = _wrapped(metric, meaning, width or NARROW, 0, bottom + 34)
    # The nested drawing is stretched to the width; strokes keep theirs (vector-effect), so round caps stay round.
    body = [
        f'<svg x="2%" width="96%" height="{bottom}" viewBox="0 0 1000 {bottom}" preserveAspectRatio="none" '
        f'overflow="visible">{"".join(drawn)}</svg>', *texts, *label,
    ]  # fmt: skip
    height = bottom + 24 + LINE * len(label)
    title = f"{metric} by arm, {_seeds(result)}"
    return _svg("chart-dots", width or "100%", height, title, "; ".join(words), body, fluid=True)


def curves(result: Mapping[str, Any], limit: int = 6) -> list[Markup]:
    """Small multiples of the logged points: first a key to the lines, then a panel a quantity.

    The quantities that the claim judges or names come first; there are at most `limit` panels. Lines are means over
    seeds with their 95 % interval, and single seeds too where at most three arms are drawn. Empty where no key of the
    points strictly increases.
    """
    x = _increasing_key(result)
    if x is None:
        return []
    logged = {name: _runs_along(result["arms"][name], x) for name in result["order"]}
    logged = {name: runs for name, runs in logged.items() if runs}
    keys = _first_named(result, (key for runs in logged.values() for run in runs for point in run for key in point))
    styles = _styles(result, logged)
    panels = []
    for key in [key for key in keys if key != x][:limit]:
        series = {name: found for name, runs in logged.items() if (found := _series(runs, x, key)) is not None}
        if series:
            panels.append(_panel(result, x, key, series, styles))
    return [_key(result, styles), *panels] if panels else []


def plane(result: Mapping[str, Any], x: str = "kl") -> Markup | None:
    """Arms in the plane of x and another measure: means over seeds of what was logged, with 95 % intervals.

    The other measure is judged, else named by the claim, else the first logged beside x. An arm with points is a line
    with intervals of y; an arm that only has x and y among its measures is a marker with both intervals. None where
    nothing holds x.
    """
    arms = result["arms"]
    points = {name: [run["points"] for run in arms[name]["runs"]] for name in result["order"]}
    measures = {name: [[run["measures"]] for run in arms[name]["runs"]] for name in result["order"]}
    for held in (points, measures):
        beside = [key for runs in held.values() for run in runs for point in run if x in point for key in point]
        others = [key for key in _first_named(result, beside) if key not in (x, "step")]
        if others:
            break
    else:
        return None
    y = others[0]
    found = {}
    for name in result["order"]:
        series = next((s for runs in (points[name], measures[name]) if (s := _series(runs, x, y)) is not None), None)
        if series is not None:
            found[name] = series
    if not found:
        return None
    styles = _styles(result, found)
    lows_and_highs = [(s.mean - s.half, s.mean + s.half) for s in found.values()]
    xs = [v for (low, high), s in zip(lows_and_highs, found.values(), strict=True)
          for v in ((low[0], high[0]) if len(s.mean) == 1 else (s.mean,)) for v in np.ravel(v[..., 0])]  # fmt: skip
    ys = [v for pair in lows_and_highs for edge in pair for v in edge[:, 1]]
    frame = _frame(result, x, y, xs, ys, 240, margin=0.03)
    body, words = list(frame.body), []
    for name, series in found.items():
        colour, variant = styles[name]
        at = [(frame.x(a), frame.y(b)) for a, b in series.mean]
        whiskers = "".join(
            f"M{_px(left)} {frame.y.path(b - h)}V{frame.y.path(b + h)}"
            for (left, _), (_, b), (_, h) in zip(at, series.mean, series.half, strict=True) if h > 0
        )  # fmt: skip
        if len(at) == 1 and series.half[0, 0] > 0:
            a, half = series.mean[0, 0], series.half[0, 0]
            whiskers += f"M{frame.x.path(a - half)} {_px(at[0][1])}H{frame.x.path(a + half)}"
        body.append(f'<g class="c{colour}">' + (f'<path class="whisker" d="{whiskers}"/>' if whiskers else ""))
        if len(at) > 1:
            body.append(f'<path class="line {_dash(name, found, variant)}" d="{_polyline(at)}"/>')
        body.append(f'<path class="marker" d="{"".join(map(_marker(variant), at))}"/></g>')
        where = " and ".join(f"{key} {number(value)}" for key, value in zip((x, y), series.mean[-1], strict=True))
        words.append(f"{arms[name]['label']} {'at' if len(at) == 1 else 'ends at'} {where}")
    rows, height = _key_rows(result, styles, frame.height + 10, markers=True)
    title = f"{y} against {x} by arm, means over {_seeds(result)}"
    return _svg("chart-plane", WIDTH, height, title, "; ".join(words), [*body, *rows])


VERDICT_COLOURS = {"confirmed": "#1a7f37", "refuted": "#b3261e", "not shown": "#8a5a00", "indicative": "#0b61a4"}


def badge(label: str, verdict: str) -> str:
    """A verdict badge as a file of its own, for other people's READMEs: no style sheet, no fonts beyond common ones."""
    left, right = (round(text_width(text, 11)) + 12 for text in (label, verdict))
    colour = VERDICT_COLOURS.get(verdict, "#5a5a5a")
    name = escape(f"{label}: {verdict}")
    texts = "".join(
        f'<text x="{_px(middle)}" y="14" textLength="{width - 12}">{escape(text)}</text>'
        for middle, width, text in ((left / 2, left, label), (left + right / 2, right, verdict)) if text
    )  # fmt: skip
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" viewBox="0 0 {left + right} 20" '
        f'role="img" aria-label="{name}"><title>{name}</title>'
        f'<path fill="#444444" d="M{left} 0v20H3a3 3 0 0 1-3-3V3a3 3 0 0 1 3-3z"/>'
        f'<path fill="{colour}" d="M{left} 0v20h{right - 3}a3 3 0 0 0 3-3V3a3 3 0 0 0-3-3z"/>'
        f'<g fill="#ffffff" text-anchor="middle" font-family="Verdana,DejaVu Sans,Geneva,sans-serif" font-size="11">'
        f"{texts}</g></svg>\n"
    )


CHARACTER_WIDTHS = {
    28: "'ijlIJ|", 33: " ,./:;\\", 36: "f-", 40: "()[]t!r", 48: '"*_`', 53: "sz?", 57: "cLFk", 60: "vxyPTYaoe",
    64: "ESbdghnpqu$0123456789{}", 68: "AVKBRXZ", 74: "CUHN", 78: "DG&OQw", 85: "#+<=>^~M", 98: "%mW@",
}  # fmt: skip
"""Widths of DejaVu Sans (and nearly of Verdana), in hundredths of the font size."""


def text_width(text: str, size: float = 12) -> float:
    """The width of a line of type in px; characters outside the table count as wide ones."""
    return sum(_WIDTH_OF.get(character, 85) for character in text) * size / 100


_WIDTH_OF = {character: width for width, characters in CHARACTER_WIDTHS.items() for character in characters}


@dataclass(frozen=True)
class _Series:
    """One arm's means over seeds [n_points, 2] of x and y, half widths of their intervals, and the seeds' own."""

    mean: Floats
    half: Floats
    seeds: Floats


@dataclass(frozen=True)
class _Frame:
    """Axes of a panel with their drawing; `height` includes the labels."""

    x: Axis
    y: Axis
    body: list[str]
    height: int


def _series(runs: Iterable[Sequence[Mapping[str, Any]]], x: str, y: str) -> _Series | None:
    """Of the points that hold both x and y, as many as every run has; None where a run has none."""
    pairs = [[(p[x], p[y]) for p in run if _finite(p.get(x)) and _finite(p.get(y))] for run in runs]
    length = min(map(len, pairs), default=0)
    if length == 0:
        return None
    seeds = np.array([pair[:length] for pair in pairs], dtype=np.float64)
    n = len(seeds)
    half = np.zeros(seeds.shape[1:])
    if n > 1:
        half = special.stdtrit(n - 1, (1 + LEVEL) / 2) * seeds.std(axis=0, ddof=1) / math.sqrt(n)
    return _Series(seeds.mean(axis=0), half, seeds)


def _runs_along(arm: Mapping[str, Any], x: str) -> list[list[dict[str, Any]]]:
    """The points of the runs with more than two, all of which hold x."""
    return [r["points"] for r in arm["runs"] if len(r["points"]) > 2 and all(_finite(p.get(x)) for p in r["points"])]


def _increasing_key(result: Mapping[str, Any]) -> str | None:
    """The key to draw the others against: "step", else one on which an arm's seeds agree, else any that increases."""
    arms = [result["arms"][name] for name in result["order"]]
    points = [p for arm in arms for run in arm["runs"] if len(run["points"]) > 2 for p in run["points"]]
    best: dict[bool, str] = {}
    for key in sorted(dict.fromkeys(k for p in points for k in p), key=lambda key: key != "step"):
        columns = [[[p[key] for p in run] for run in _runs_along(arm, key)] for arm in arms]
        runs = [run for column in columns for run in column]
        if runs and all(a < b for run in runs for a, b in pairwise(run)):
            shared = key == "step" or all(run == column[0] for column in columns for run in column)
            best.setdefault(shared, key)
    return best.get(True, best.get(False))


def _first_named(result: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """The keys, each once: judged ones, those that the claim names, the rest by appearance."""
    known = dict.fromkeys(keys)
    return [k for k in dict.fromkeys([*result["judged"], *result["claim"]["metrics"], *known]) if k in known]


def _styles(result: Mapping[str, Any], names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """(colour, variant) of the arms: a colour a group; arms that share a colour count the variants up."""
    kinds = {name: result["arms"][name]["group"] or name for name in result["order"]}
    order = list(dict.fromkeys(kinds.values()))
    used: dict[int, int] = {}
    styles = {}
    for name in names:
        colour = order.index(kinds[name]) % COLOURS
        styles[name] = (colour, used.get(colour, 0))
        used[colour] = used.get(colour, 0) + 1
    return styles


def _panel(
    result: Mapping[str, Any], x: str, y: str, series: Mapping[str, _Series], styles: Mapping[str, tuple[int, int]]
) -> Markup:
    with_seeds = len(series) <= 3
    xs = [v for s in series.values() for v in s.mean[:, 0]]
    edges = [edge for s in series.values() for edge in (s.mean - s.half, s.mean + s.half)]
    if with_seeds:
        edges += [seed for s in series.values() for seed in s.seeds]
    frame = _frame(result, x, y, xs, [v for edge in edges for v in edge[:, 1]], 150)
    below, above, words = [], [], []
    for name, s in series.items():
        colour, variant = styles[name]
        at = [(frame.x(a), frame.y(b)) for a, b in s.mean]
        upper, lower = ([(frame.x(a), frame.y(b + sign * h)) for (a, b), h in zip(s.mean, s.half[:, 1], strict=True)]
                        for sign in (1, -1))  # fmt: skip
        if s.half[:, 1].any():
            band = _polyline(upper) + "L" + _polyline(lower[::-1])[1:] + "z"
            below.append(f'<path class="band c{colour}" d="{band}"/>')
        if with_seeds and len(s.seeds) > 1:
            single = "".join(_polyline([(frame.x(a), frame.y(b)) for a, b in seed]) for seed in s.seeds)
            below.append(f'<path class="seed c{colour}" d="{single}"/>')
        above.append(f'<path class="line {_dash(name, series, variant)} c{colour}" d="{_polyline(at)}"/>')
        last, half = s.mean[-1, 1], s.half[-1, 1]
        interval = {"low": last - half, "high": last + half} if len(s.seeds) > 1 else None
        words.append(f"{result['arms'][name]['label']} {with_interval(last, interval)}")
    title = f"{y} against {x}, means over {_seeds(result)}"
    last_values = f"Last values: {'; '.join(words)}"
    return _svg("chart-curve", WIDTH, frame.height, title, last_values, [*frame.body, *below, *above])


def _frame(
    result: Mapping[str, Any], x: str, y: str, xs: list[float], ys: list[float], height: int, margin: float = 0.0
) -> _Frame:
    """Axes that hold xs and ys (x widened by `margin` of its range on both sides) in a plot `height` px high."""
    meanings = result["claim"]["metrics"]
    label = _wrapped(y, meanings.get(y, ""), WIDTH, 0, 12)
    top = LINE * len(label) + 8
    low, high = _range(ys)
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    y_ticks = nice_ticks(low, high, 4)
    y_texts = tick_texts(y_ticks)
    left = max(map(text_width, y_texts), default=0) + 8
    y_axis = Axis(low, high, top + height, top)
    x_low, x_high = _range(xs)
    widening = margin * (x_high - x_low)
    x_axis = Axis(x_low - widening, x_high + widening, left, WIDTH - 10)
    x_ticks = nice_ticks(x_axis.low, x_axis.high)
    bottom = top + height
    across = "".join(f"M{_px(left)} {y_axis.path(tick)}H{WIDTH}" for tick in y_ticks)
    below = "".join(f"M{x_axis.path(tick)} {bottom}v4" for tick in x_ticks)
    body = [*label, f'<path class="grid" d="{across}"/><path class="axis" d="M{_px(left)} {bottom}H{WIDTH}{below}"/>']
    body += [_text(left - 6, y_axis(tick) + 4, text, "tick", "end")
             for tick, text in zip(y_ticks, y_texts, strict=True)]  # fmt: skip
    body += [_text(min(x_axis(tick), WIDTH - text_width(text) / 2), bottom + 17, text, "tick", "middle")
             for tick, text in zip(x_ticks, tick_texts(x_ticks), strict=True)]  # fmt: skip
    words = _lines(meanings.get(x, x), WIDTH - left)
    body += [_text(WIDTH, bottom + 33 + LINE * i, line, "label", "end") for i, line in enumerate(words)]
    return _Frame(x_axis, y_axis, body, bottom + 23 + LINE * len(words))


def _key(result: Mapping[str, Any], styles: Mapping[str, tuple[int, int]]) -> Markup:
    """The lines of all panels, named."""
    rows, height = _key_rows(result, styles, 0, markers=False)
    labels = "; ".join(result["arms"][name]["label"] for name in styles)
    return _svg("chart-key", WIDTH, height, "The arms that the panels draw", labels, rows)


def _key_rows(
    result: Mapping[str, Any], styles: Mapping[str, tuple[int, int]], top: float, *, markers: bool
) -> tuple[list[str], int]:
    """A row an arm (two a row where all labels fit), and the height at which they end."""
    labels = {name: result["arms"][name]["label"] for name in styles}
    columns = 2 if all(text_width(label, TYPE) <= WIDTH / 2 - 44 for label in labels.values()) else 1
    deep = -(-len(styles) // columns)
    rows = []
    for index, (name, (colour, variant)) in enumerate(styles.items()):
        left, middle = WIDTH / 2 * (index // deep), top + 20 * (index % deep) + 10
        marker = f'<path class="marker" d="{_marker(variant)((left + 14, middle))}"/>' if markers else ""
        line = f'<path class="line d{variant % 4}" d="M{_px(left)} {_px(middle)}h28"/>'
        rows.append(f'<g class="c{colour}">{line}{marker}</g>')
        room = WIDTH / columns - 44
        rows.append(_text(left + 36, middle + 4, _shorten(labels[name], room), "name", full=labels[name]))
    return rows, math.ceil(top + 20 * deep)


MARKERS = (
    "m-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0-6.4 0z", "m-2.9-2.9h5.8v5.8h-5.8z", "m0-4l4 4-4 4-4-4z",
    "m0-3.8l3.8 6.6h-7.6z", "m0 3.8l3.8-6.6h-7.6z", "m-1.2-3.6h2.4v2.4h2.4v2.4h-2.4v2.4h-2.4v-2.4h-2.4v-2.4h2.4z",
    "m-3.2-1.6l3.2-2.4 3.2 2.4v3.2l-3.2 2.4-3.2-2.4z", "m-4-1.6h8v3.2h-8z",
)  # fmt: skip
"""Circle, square, diamond, triangles, plus, hexagon, bar: outlines around the current point."""


def _marker(variant: int) -> Callable[[tuple[float, float]], str]:
    shape = MARKERS[variant % len(MARKERS)]
    return lambda at: f"M{_px(at[0])} {_px(at[1])}{shape}"


def _dash(name: str, drawn: Mapping[str, _Series], variant: int) -> str:
    """The variant's class; a line on top of an earlier one has gaps that show it."""
    earlier = list(drawn)[: list(drawn).index(name)]
    hides = any(np.array_equal(drawn[name].mean, drawn[other].mean) for other in earlier)
    return "over" if hides else f"d{variant % 4}"


def _bounds(stated: Mapping[str, Any]) -> list[float]:
    """What an interval is held against; a margin of zero needs no line of its own."""
    return [bound for bound in content.bounds(stated) if bound or stated["kind"] != "Better"]


def _stacked(places: Iterable[float]) -> list[tuple[float, float]]:
    """Each place with a lift in px: places that nearly coincide are piled up in columns of three around them."""
    piles: list[list[float]] = []
    for place in sorted(places):
        if piles and place - piles[-1][0] < 8:
            piles[-1].append(place)
        else:
            piles.append([place])
    stacked = []
    for pile in piles:
        columns = [pile[i : i + 3] for i in range(0, len(pile), 3)]
        for index, column in enumerate(columns):
            aside = 14 * (index - (len(columns) - 1) / 2)
            stacked += [(place + aside, 5 * (i - (len(column) - 1) / 2)) for i, place in enumerate(column)]
    return stacked


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Least and greatest of the finite values, apart: a single value gets room on both sides."""
    finite = [float(value) for value in values if _finite(value)] or [0.0]
    low, high = min(finite), max(finite)
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size or high == low:
        return low - (0.1 * size or 1.0), high + (0.1 * size or 1.0)
    return low, high


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _seeds(result: Mapping[str, Any]) -> str:
    n = len(result["seeds"])
    return f"{n} seed{'s' if n != 1 else ''}"


def _px(value: float) -> str:
    """A coordinate with at most one decimal."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _polyline(at: Sequence[tuple[float, float]]) -> str:
    first, *others = (f"{_px(left)} {_px(top)}" for left, top in at)
    return f"M{first}" + (f"L{' '.join(others)}" if others else "h0")


def _lines(text: str, width: float) -> list[str]:
    return textwrap.wrap(text, max(12, int(width / 6.2)))


def _wrapped(key: str, meaning: str, width: float, left: float, top: float) -> list[str]:
    """The lines of an axis's label: the key and what it means."""
    lines = _lines(f"{key}: {meaning}" if meaning and meaning != key else key, width)
    return [_text(left, top + LINE * index, line, "label") for index, line in enumerate(lines)]


def _shorten(text: str, width: float) -> str:
    if text_width(text, TYPE) <= width:
        return text
    kept = next((n for n in range(len(text), 0, -1) if text_width(text[:n] + "...", TYPE) <= width), 1)
    return text[:kept].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def _text(x: float | str, y: float, text: str, kind: str, anchor: str = "start", full: str = "") -> str:
    place = x if isinstance(x, str) else _px(x)
    aligned = "" if anchor == "start" else f' text-anchor="{anchor}"'
    hint = f"<title>{escape(full)}</title>" if full and full != text else ""
    return f'<text class="{kind}" x="{place}" y="{_px(y)}"{aligned}>{escape(text)}{hint}</text>'


def _svg(
    kind: str, width: int | str, height: int, title: str, desc: str, body: Iterable[str], fluid: bool = False
) -> Markup:
    box = "" if fluid else f' viewBox="0 0 {width} {height}"'
    return Markup(
        f'<svg class="chart {kind}" width="{width}" height="{height}"{box} role="img">'
        f"<title>{escape(title)}</title><desc>{escape(desc)}.</desc>{''.join(body)}</svg>"
    )
