"""results.json and RESULTS.md, which every measurement beside this file writes its part of."""

from __future__ import annotations

import platform
import textwrap
from datetime import UTC, datetime
from pathlib import Path

from row_tables import number, speed
from rows import ROWS
from telos.core.files import read_json, write_atomic, write_json
from telos.judge.check import machine
from telos.judge.results import git_state

HERE = Path(__file__).resolve().parent
MADE = tuple(f"bench/{name}" for name in ("results.json", "RESULTS.md", "PROFILES.md", "growth.png"))
"""What measurements write: no change of the code."""


def about(threads: int, device: str = "cpu") -> dict:
    """When, where and of which code: for every measured row."""
    git = git_state(HERE.parent)
    changed = [path for path in git["dirty"] if path not in MADE] if git else []
    cpu = f"{machine()['cpu']}, {platform.machine()}, {threads} threads"
    if device != "cpu":
        import torch

        cpu = torch.cuda.get_device_name()
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": cpu,
        "commit": git["commit"][:12] + (" and changes" if changed else "") if git else "unknown",
    }


def record(name: str, row: dict, folder: Path = HERE) -> str:
    """Puts one row into results.json, others are kept, and makes RESULTS.md anew: its text. What nothing makes any
    more goes."""
    file = folder / "results.json"
    rows = {**(read_json(file) if file.is_file() else {}), name: row}
    kept = {key: row for key, row in rows.items() if key in (*ROWS, *SECTIONS)}
    # The report is of what the file holds, whose parts are in another order.
    rows = read_json(write_json(file, kept))
    parts = [speed({key: rows[key] for key in ROWS if key in rows})]
    parts += [section(rows[key]) for key, section in SECTIONS.items() if key in rows]
    return write_atomic(folder / "RESULTS.md", "\n".join(parts)).read_text()


def measured(row: dict) -> str:
    return f"{row['date']}, {row['machine']}, commit {row['commit']}"


def memory(row: dict) -> str:
    lines = [
        "# Memory with a large vocabulary",
        "",
        textwrap.fill(
            f"Made by `python bench/memory.py`: one update on {row['work']}. Each row is a process of its own. The "
            "peak is the most held at once above weights, optimiser state and the gradients there are at that moment "
            f"(by {' / by '.join(row['meters'].values())}); the ratio (by the first) is to the body's own, aim: "
            f"at most {row['aim']}. {measured(row)}.",
            120,
        ),
        "",
        "| update | weights MB | gradients MB | optimiser MB | peak above them MB | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in row["rows"].items():
        sizes = " | ".join(f"{found[part] / 1e6:.0f}" for part in ("weights", "gradients", "optimiser"))
        peaks = " / ".join(f"{found[meter] / 1e6:.0f}" for meter in row["meters"])
        ratio = f"{found['ratio']:.2f}"
        lines.append(f"| {name}: {found['work']} | {sizes} | {peaks} | {f'**{ratio}**' if found['ours'] else ratio} |")
    return "\n".join(lines) + "\n"


def real_pairs(row: dict) -> str:
    lines = [
        "# Held-out accuracy on real pairs",
        "",
        textwrap.fill(row["text"], 120),
        "",
        f"Made by `{row['command']}`, {row['seconds']:.0f} s. {measured(row)}.",
        "",
        "| what tells the pair apart | accuracy | over seeds | over prompts | above a coin |",
        "|---|---|---|---|---|",
    ]
    for name, found in row["rows"].items():
        estimate, seeds, prompts = (
            f"{100 * found['seeds']['estimate']:.1f} %",
            *(f"[{100 * found[key]['low']:.1f}, {100 * found[key]['high']:.1f}]" for key in ("seeds", "prompts")),
        )
        above = min(found["seeds"]["low"], found["prompts"]["low"]) > 0.5
        lines.append(f"| {name}: {found['work']} | {estimate} | {seeds} | {prompts} | {'yes' if above else 'no'} |")
    return "\n".join(lines) + "\n"


def measure(row: dict) -> str:
    lines = [
        "# Measuring a large data set",
        "",
        textwrap.fill(
            f"Made by `python bench/measure.py`: {row['work']}, a file of {row['bytes'] / 1e6:,.0f} MB, loaded and "
            "measured in one process with one thread. Resident memory holds pages of the mapped file, which can be "
            f"given up at any time; own memory is what was allocated besides. {measured(row)}.",
            120,
        ),
        "",
        "| unique pairs by | load s | measure s | peak resident MB | own MB | unique pairs |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in row["rows"].items():
        seconds = f"{found['load_seconds']:.1f} | {found['measure_seconds']:.1f}"
        peaks = f"{found['resident'] / 1e6:.0f} | {found['own'] / 1e6:.0f}"
        lines.append(f"| {name}: {found['work']} | {seconds} | {peaks} | {found['unique']:,.0f} |")
    return "\n".join(lines) + "\n"


def precision(row: dict) -> str:
    lines = [
        "# What coarser matrix products do to results",
        "",
        textwrap.fill(
            f"Made by `python bench/precision.py`: {row['work']}. The same runs with `numerics` auto and medium; the "
            f"difference is medium less auto, with its 95 % interval over seeds. {measured(row)}.",
            120,
        ),
        "",
        "| method | mean return, auto | medium | difference | times as fast |",
        "|---|---|---|---|---|",
    ]
    for name, found in row["rows"].items():
        means = " | ".join(f"{sum(values) / len(values):.0f}" for values in found["returns"].values())
        difference = "{estimate:.0f} [{low:.0f}, {high:.0f}]".format(**found["difference"])
        lines.append(f"| {name} | {means} | {difference} | {found['speed']:.2f} |")
    return "\n".join(lines) + "\n"


def growth(row: dict) -> str:
    lines = [
        "# How cost grows",
        "",
        "![time and memory on logarithmic axes](growth.png)",
        "",
        textwrap.fill(
            "Made by `python bench/growth.py`: every point is a process of its own. An exponent is the slope of least "
            "squares through the logarithms: at 0 cost does not grow, at 1 it grows as the thing itself. Memory is "
            f"what the process allocates, without pages of mapped files. {measured(row)}.",
            120,
        ),
        "",
        "| what | grows | from, to | cost of | at first | at last | exponent |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in row["lines"].values():
        for name, values in line["series"].items():
            ends = (f"{number(value)} {'MB' if name == 'MB' else 's'}" for value in (values[0], values[-1]))
            what = "memory" if name == "MB" else name
            lines.append(
                f"| {line['work']} | {line['label']} | {line['x'][0]:,.0f}, {line['x'][-1]:,.0f} | {what} | "
                f"{' | '.join(ends)} | {line['exponents'][name]:.2f} |"
            )
    return "\n".join(lines) + "\n"


SECTIONS = {"growth": growth, "memory": memory, "real_pairs": real_pairs, "measure": measure, "precision": precision}
