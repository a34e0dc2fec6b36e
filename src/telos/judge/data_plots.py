"""Pictures of a data set's measures."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from telos.data.measures import Measures, Spread
from telos.judge.plots import INK, PALETTE, figure

MOST_BARS = 24


def draw_measures(measures: Measures, path: Path) -> Path:
    """Histograms of returns and lengths, how much of the action space is covered, and the plane of TQ and SACo.

    Without a reference the last panel has the raw count share in SACo's place.

    Raises:
        TelosError: `path` cannot be written.
    """
    with figure(path, width=8.0, height=5.2, rows=2, columns=2) as (drawn, axes):
        histogram(axes[0, 0], measures.returns, "return of an episode", PALETTE[0])
        histogram(axes[0, 1], measures.lengths, "steps of an episode", PALETTE[2])
        actions(axes[1, 0], measures)
        plane(axes[1, 1], measures)
        title = f"{measures.transitions:,} transitions in {measures.episodes:,} episodes"
        origin = textwrap.shorten(measures.origin or "", 100)
        drawn.suptitle(f"{title}\n{origin}" if origin else title, x=0.01, ha="left", fontsize=9)
    return path


def histogram(ax: Any, spread: Spread, name: str, colour: str) -> None:
    """Counts of episodes, with the mean dashed."""
    edges = np.array(spread.edges)
    ax.bar(edges[:-1], spread.counts, np.diff(edges), align="edge", color=colour, edgecolor="white", linewidth=0.4)
    ax.axvline(spread.mean, color=INK, lw=1.0, ls=(0, (4, 3)))
    ax.set_title(f"mean {spread.mean:.4g}")
    ax.set_xlabel(name)
    ax.set_ylabel("episodes")


def actions(ax: Any, measures: Measures) -> None:
    """Shares of discrete actions; of continuous ones the bins that hold any, a bar a dimension."""
    discrete = measures.action_shares is not None
    values = np.array(measures.action_shares if discrete else measures.action_coverage)[:MOST_BARS]
    ax.bar(np.arange(len(values)), values, 0.8, color=PALETTE[3])
    ax.set_title(f"first {MOST_BARS}" if len(values) == MOST_BARS else "")
    ax.set_xlabel("action" if discrete else "dimension of the actions")
    ax.set_ylabel("share of transitions" if discrete else f"share of {measures.bins} bins used")
    ax.set_xticks(np.arange(len(values)))
    if not discrete:
        ax.set_ylim(0, 1.05)


def plane(ax: Any, measures: Measures) -> None:
    """The data set as a point: quality to the right, coverage up; the reference is at height 1."""
    covered, name = (measures.saco, "coverage SACo") if measures.saco is not None else (measures.share, "unique share")
    quality = 0.0 if measures.tq is None else measures.tq
    ax.axhline(1, color="#8C8C8C", lw=0.8)
    ax.axvline(1, color="#8C8C8C", lw=0.8)
    ax.plot(quality, covered, "o", color=PALETTE[1], ms=8, mec="white")
    ax.set_xlim(min(-0.05, quality - 0.1), max(1.1, quality + 0.1))
    ax.set_ylim(0, max(1.1, covered + 0.1))
    ax.set_xlabel(
        "quality TQ" + (" (inferred ends)" if measures.inferred else "") if measures.tq is not None else "TQ?"
    )
    ax.set_ylabel(name)
    ax.set_title(f"TQ {'-' if measures.tq is None else f'{measures.tq:.3f}'}, {name.split()[-1]} {covered:.3f}")
