"""Pictures of results, in one style that claims can use too; matplotlib comes with the extra `plots`."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from telos.core.errors import TelosError
from telos.core.files import write_atomic
from telos.judge.stats import paired_t

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D5D5D", "#882255")
"""Colours that the colour-blind tell apart (Okabe and Ito 2008, yellow and black replaced for lines on white)."""
INK = "#262626"
STYLE: Any = {
    "figure.dpi": 150, "savefig.dpi": 150, "font.size": 9, "font.family": "DejaVu Sans", "axes.titlesize": 9.5,
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#8C8C8C",
    "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK, "axes.grid": True,
    "grid.color": "#EBEBEB", "grid.linewidth": 0.8, "axes.axisbelow": True, "legend.frameon": False,
    "lines.linewidth": 1.6, "svg.hashsalt": "telos",
}  # fmt: skip
MARKERS = "osD^vPX*"


def draw(
    result: Mapping[str, Any], path: Path, plot: Callable[[dict[str, Any], Path], None] | None = None
) -> Path | None:
    """Draws a result with the claim's own plot or as `dots`; without matplotlib it prints a hint and gives None."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no picture: matplotlib is missing (pip install 'telos[plots]')", file=sys.stderr)
        return None
    try:
        (plot or dots)(dict(result), path)
    except Exception as error:
        raise TelosError(
            f"{path} could not be drawn", got=f"{type(error).__name__}: {error}", fix="mend the claim's plot"
        ) from error
    return path


@contextlib.contextmanager
def figure(
    path: Path, *, width: float = 7.0, height: float = 4.0, rows: int = 1, columns: int = 1
) -> Iterator[tuple[Any, Any]]:
    """A figure in the house style, saved to `path` when the block ends well.

    Args:
        width, height: inches, at 150 dots an inch.

    Yields:
        (matplotlib Figure, axes [rows, columns]).
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(drawn)
        yield drawn, drawn.subplots(rows, columns, squeeze=False)
        write_atomic(path, lambda temporary: drawn.savefig(temporary, format="png", metadata={"Software": None}))


def colours(result: Mapping[str, Any]) -> dict[str, str]:
    """A colour an arm: one a group, and one for each arm outside groups."""
    kinds = {name: result["arms"][name]["group"] or name for name in result["order"]}
    order = list(dict.fromkeys(kinds.values()))
    return {name: PALETTE[order.index(kind) % len(PALETTE)] for name, kind in kinds.items()}


def heading(drawn: Any, result: Mapping[str, Any], width: float = 7.0) -> None:
    """The claim and its verdict above a figure of `width` inches."""
    below = f"{result['verdict']} · {len(result['seeds'])} seeds · {result['claim']['world']}"
    lines = [textwrap.fill(text, int(13 * width)) for text in (result["claim"]["statement"], below)]
    drawn.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=9)


def dots(result: dict[str, Any], path: Path) -> None:
    """A panel a judged metric: each seed a dot, the mean with its 95 % interval, bounds that parts state dashed."""
    metrics = [m for m in result["judged"] if any(m in arm["summary"] for arm in result["arms"].values())]
    names = [n for n in result["order"] if any(m in result["arms"][n]["summary"] for m in metrics)]
    columns = min(len(metrics), 3)
    rows = -(-len(metrics) // columns)
    width = 7.0 if columns < 3 else 10.0
    height = 0.9 + rows * (0.6 + 0.36 * len(names))
    colour = (
        colours(result) if any(arm["group"] for arm in result["arms"].values()) else dict.fromkeys(names, PALETTE[0])
    )
    with figure(path, width=width, height=height, rows=rows, columns=columns) as (drawn, axes):
        for index, ax in enumerate(axes.flat):
            if index >= len(metrics):
                ax.set_axis_off()
                continue
            _dots_panel(ax, result, metrics[index], names, colour)
            ax.set_yticks(range(len(names)), [result["arms"][n]["label"] for n in names])
            ax.tick_params(axis="y", length=0, labelleft=index % columns == 0)
        heading(drawn, result, width)


def _dots_panel(ax: Any, result: Mapping[str, Any], metric: str, names: list[str], colour: Mapping[str, str]) -> None:
    for row, name in enumerate(names):
        arm = result["arms"][name]
        if metric not in arm["summary"]:
            continue
        values = [run["measures"][metric] for run in arm["runs"]]
        # Seeds lie above the interval, side by side in a fixed order, so that equal values stay visible.
        lift = row - 0.18 - 0.14 * np.linspace(0, 1, len(values))
        ax.scatter(values, lift, s=14, color=colour[name], alpha=0.45, linewidths=0)
        summary = arm["summary"][metric]
        if summary["interval"] is not None:
            ax.plot([summary["interval"]["low"], summary["interval"]["high"]], [row, row], color=colour[name], lw=2.4)
        ax.plot(summary["mean"], row, "o", color=colour[name], ms=6.5, mec="white", mew=1.0)
    for part in (p["part"] for p in result["parts"] if p["part"]["kind"] == "Threshold"):
        for bound in (part["at_least"], part["at_most"]) if part["metric"] == metric else ():
            if bound is not None:
                ax.axvline(bound, color=INK, lw=1.0, ls=(0, (4, 3)))
    ax.set_ylim(len(names) - 0.5, -0.7)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(textwrap.fill(f"{metric}: {result['claim']['metrics'].get(metric, '')}", 44))


def plane(
    result: dict[str, Any], path: Path, x: str = "kl", y: str = "gold", band: tuple[float, float] | None = (3, 10)
) -> None:
    """Settings in a plane of two measures, as gold reward against KL: means over seeds of what was logged in training.

    An arm with points is a line through its means, with 95 % intervals of y; an arm that only has x and y among its
    measures is one marker with both intervals. A colour a group, a marker a setting; the scored range is shaded.
    """
    colour = colours(result)
    arms = result["arms"]
    with figure(path, width=7.0, height=4.8) as (drawn, axes):
        ax = axes[0, 0]
        if band is not None:
            ax.axvspan(*band, color="#F2F2F2", lw=0, zorder=0)
            ax.annotate(
                f"scored: {band[0]:g} to {band[1]:g}", (band[0], 1), xycoords=("data", "axes fraction"),
                xytext=(4, -4), textcoords="offset points", va="top", fontsize=7.5, color="#6B6B6B",
            )  # fmt: skip
        used: dict[str, int] = {}
        for name in result["order"]:
            series = _series(arms[name]["runs"], x, y)
            if series is None:
                continue
            group = arms[name]["group"] or name
            marker = MARKERS[used.get(group, 0) % len(MARKERS)]
            used[group] = used.get(group, 0) + 1
            means_x, spread_x, means_y, spread_y = series
            single = len(means_x) == 1
            _, _, bars = ax.errorbar(
                means_x, means_y, yerr=spread_y, xerr=spread_x if single else None, color=colour[name],
                marker=marker, ms=7 if single else 4, mec="white", mew=0.7, lw=1.4, elinewidth=0.8,
                label=arms[name]["label"],
            )  # fmt: skip
            for bar in bars:
                bar.set_alpha(0.45)
        ax.set_xlabel(result["claim"]["metrics"].get(x, x))
        ax.set_ylabel(result["claim"]["metrics"].get(y, y))
        if used:
            ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7.5)
        heading(drawn, result)


def _series(runs: list[dict[str, Any]], x: str, y: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Means over seeds and half widths of their 95 % intervals, (n_points,) each, of x and of y; None without both."""
    logged = [[(p[x], p[y]) for p in run["points"] if x in p and y in p] for run in runs]
    if not any(logged):
        logged = [[(r["measures"][x], r["measures"][y])] for r in runs if x in r["measures"] and y in r["measures"]]
    length = min(map(len, logged), default=0)
    if length == 0:
        return None
    values = np.array([points[:length] for points in logged])
    half = np.zeros(values.shape[1:])
    if len(values) > 1:
        for index in np.ndindex(*half.shape):
            interval = paired_t(values[:, *index])
            half[index] = interval.high - interval.estimate
    means = values.mean(axis=0)
    return means[:, 0], half[:, 0], means[:, 1], half[:, 1]
