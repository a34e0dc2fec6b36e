"""results.json and RESULTS.md, which every measurement beside this file writes its part of."""

from __future__ import annotations

import platform
import textwrap
from datetime import UTC, datetime
from pathlib import Path

from telos.core.files import read_json, write_atomic, write_json
from telos.judge.check import machine
from telos.judge.results import git_state

HERE = Path(__file__).resolve().parent


def about(threads: int, device: str = "cpu") -> dict:
    """When, where and of which code: for every measured row."""
    git = git_state(HERE.parent)
    cpu = f"{machine()['cpu']}, {platform.machine()}, {threads} threads"
    if device != "cpu":
        import torch

        cpu = torch.cuda.get_device_name()
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": cpu,
        "commit": git["commit"][:12] if git else "unknown",
    }


def record(name: str, row: dict, folder: Path = HERE) -> str:
    """Puts one row into results.json, others are kept, and makes RESULTS.md anew: its text."""
    file = folder / "results.json"
    rows = {**(read_json(file) if file.is_file() else {}), name: row}
    write_json(file, rows)
    parts = [speed({key: row for key, row in rows.items() if key not in SECTIONS})]
    parts += [section(rows[key]) for key, section in SECTIONS.items() if key in rows]
    return write_atomic(folder / "RESULTS.md", "\n".join(parts)).read_text()


def measured(row: dict) -> str:
    return f"{row['date']}, {row['machine']}, commit {row['commit']}"


def speed(rows: dict) -> str:
    lines = [
        "# Speed, measured side by side",
        "",
        "Made by `make bench`; each pair runs alternately in one run. A ratio above 1 means that telos is faster; in",
        "brackets the 95 % interval over rounds. Memory is the process's peak.",
        "",
        "| work | against | telos | peer | ratio | aim | memory MB, telos / peer | measured |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        unit = f"{row['unit']}/s"
        lines.append(
            f"| {name}: {row['work']} | {row['peer']} | {row['ours_per_second']:.0f} {unit} | "
            f"{row['peer_per_second']:.0f} {unit} | **{row['ratio']:.2f}** [{row['low']:.2f}, {row['high']:.2f}] | "
            f"{row['aim']} | {row['ours_megabytes']:.0f} / {row['peer_megabytes']:.0f} | {measured(row)} |"
        )
    return "\n".join(lines) + "\n"


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


SECTIONS = {"memory": memory, "real_pairs": real_pairs, "measure": measure}
