"""The tables of RESULTS.md that come from the rows of rows.py, and what is said of their aims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Row = Mapping[str, Any]


def met(row: Row) -> str:
    """Whether a row's aim is met: by its whole interval, by the figure only, or not; nothing without an aim."""
    if row["aim"] is None:
        return "-"
    sign = 1 if row["sense"] == "at least" else -1
    if sign * row["figure"] < sign * row["aim"]:
        return "**missed**"
    worst = row.get("low" if sign > 0 else "high", row["figure"])
    return "met" if sign * worst >= sign * row["aim"] else "met, within noise"


def heavier(row: Row) -> bool:
    """Whether telos's process takes more memory than the peer's: by two percent, for allocators vary."""
    memory = row.get("megabytes", ())
    return row["kind"] == "speed" and len(memory) == 2 and memory[0] > 1.02 * memory[1]


def missed(rows: Mapping[str, Row]) -> list[str]:
    """One line for each aim that is missed."""
    lines = []
    for name, row in rows.items():
        if met(row) == "**missed**":
            lines.append(f"- {name}: {FORMATS[row['kind']](row['figure'])}, aim {aim(row)}")
        if heavier(row):
            lines.append(f"- {name}: memory {memory(row)} MB, aim at most the peer's")
    return lines


def number(value: float) -> str:
    """Three digits, no exponent for large ones."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


FORMATS: dict[str, Callable[[float], str]] = {
    "speed": lambda value: f"{value:.2f}",
    "share": lambda value: f"{100 * value:.0f} %",
    "cost": lambda value: f"{value:.2f}",
    "check": lambda value: f"{value:.2g}",
    "command": lambda value: f"{value:.2f} s",
}


def aim(row: Row) -> str:
    return "-" if row["aim"] is None else f"{row['sense']} {FORMATS[row['kind']](row['aim'])}"


def interval(row: Row) -> str:
    """The figure, with its interval where it has one."""
    write = FORMATS[row["kind"]]
    ends = f" [{write(row['low'])}, {write(row['high'])}]" if row.get("low", row["figure"]) < row["figure"] else ""
    return f"**{write(row['figure'])}**{ends}"


def memory(row: Row) -> str:
    return " / ".join(f"{megabytes:.0f}" for megabytes in row["megabytes"])


def rates(row: Row) -> str:
    """What both did in a second."""
    units = (row["unit"], row["their_unit"] or row["unit"])
    return " | ".join(f"{number(value)} {unit}/s" for value, unit in zip(row["per_second"], units, strict=True))


COMMON = ("telos", "torch", "linear", "decoder", "forward", "precision", "update")
"""Versions, and choices of the numerical path, that are the same in every row of a run."""


def against(row: Row) -> str:
    """The peer, with its versions."""
    theirs = row.get("versions", [{}, {}])[1]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(theirs.items()) if name not in COMMON)
    return f"{row['against']} ({versions})" if versions else row["against"]


def both(row: Row) -> str:
    """The cells of two sides."""
    return f"{against(row)} | {rates(row)} | {interval(row)} | {aim(row)} | {met(row)} | {memory(row)}"


PAIR = ("work", "against", "telos", "peer")
LAYOUT: dict[str, tuple[str, str, tuple[str, ...], Callable[[Row], str]]] = {
    "speed": (
        "Against the peers", "A ratio above 1 means that telos is faster. The peak memory of its process should never "
        "be above the peer's.", (*PAIR, "ratio", "aim", "", "memory MB"),
        both,
    ),
    "share": (
        "Share of the matrix peak", "Operations of an update's matrix products a second, over those of one large "
        "product in float32, by the machine's faster kernel.", (*PAIR, "share", "aim", "", "memory MB"),
        both,
    ),
    "cost": (
        "What it costs", "How many of the other one takes.", (*PAIR, "cost", "aim", "", "memory MB"),
        both,
    ),
    "check": (
        "The same results", "The fast way gives what the peer gives.", ("work", "against", "figure", "aim", ""),
        lambda row: f"{against(row)} | {interval(row)} | {aim(row)} | {met(row)}",
    ),
    "command": (
        "From a cold start", "New processes: the median, the least and the most.",
        ("command", "seconds", "aim", "", "memory MB"),
        lambda row: f"{interval(row)} | {aim(row)} | {met(row)} | {memory(row)}",
    ),
}  # fmt: skip


def source(row: Row) -> str:
    """When, where and by what a row was measured."""
    ours = row.get("versions", [{}])[0]
    path = [f"{name} {ours[name]}" for name in COMMON if name in ours]
    return ", ".join([row["date"], row["machine"], f"commit {row['commit']}", *path])


def speed(rows: Mapping[str, Row]) -> str:
    """All of them: what is missed, then a table of each kind, then where they were measured."""
    lines = [
        "# Speed, measured side by side",
        "",
        "Made by `make bench`: the two sides of a row work in turn, in one run, with the same hyper-parameters, data,",
        "precision and threads; warm-up is outside. In brackets the 95 % interval over rounds.",
        "",
        "Aims that are missed:" if missed(rows) else "No aim is missed.",
        "",
        *missed(rows),
    ]
    notes: dict[str, int] = {}
    for kind, (title, text, head, cells) in LAYOUT.items():
        own = {name: row for name, row in rows.items() if row["kind"] == kind}
        if own:
            lines += ["", f"## {title}", "", text, "", f"| {' | '.join(head)} | measured |"]
            lines.append("|" + "---|" * (len(head) + 1))
        for name, row in own.items():
            note = notes.setdefault(source(row), len(notes) + 1)
            lines.append(f"| {name}: {row['work']} | {cells(row)} | ({note}) |")
    lines += ["", "Measured:", "", *(f"{note}. {text}" for text, note in notes.items())]
    return "\n".join(lines) + "\n"
