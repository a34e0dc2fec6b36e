"""Where time goes: the operators with the most time of their own, by torch.profiler.

    python bench/profiles.py [WORK ...] [--out FOLDER] [--threads N]

Writes PROFILES.md anew: what short runs of each work spend, profiled in a process of its own, after a warm-up.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

import telos
from offline_data import ACTIONS, columns
from pairs import model_folder, rows
from report import HERE, about, measured
from sampling import MODELS, by_telos, prompts
from telos.core.files import write_atomic
from telos.data.records import Box, Transitions
from telos.lm.model import load_model
from workers import environment, told

SHOWN = 12


class Ticks:
    """An `evaluate` for `fit`: profiles what lies between its second and its last call."""

    def __init__(self, ticks: int):
        self.ticks, self.calls = ticks, 0
        self.profile = profile(activities=[ProfilerActivity.CPU])

    def __call__(self, *_: object) -> dict[str, float]:
        self.calls += 1
        if self.calls == 2:
            self.profile.start()
        if self.calls == self.ticks:
            self.profile.stop()
        return {}


def offline(name: str) -> Any:
    """100 updates."""
    ticks = Ticks(3)
    data = Transitions.validated(**columns(), action_space=Box((-1.0,) * ACTIONS, (1.0,) * ACTIONS))
    telos.use(name).fit(data, steps=300, device="cpu", evaluate=ticks, evaluate_every=100)
    return ticks.profile


def dpo() -> Any:
    """3 updates on 32 pairs."""
    ticks, table = Ticks(5), rows(256)
    data = telos.Preferences(*([row[name] for row in table] for name in ("prompt", "chosen", "rejected")))
    method = telos.DPO(batch_size=32, warmup_steps=0, max_length=1024)
    method.fit(data, model=model_folder(), steps=5, device="cpu", evaluate=ticks, evaluate_every=1)
    return ticks.profile


def sampling(name: str) -> Any:
    """64 tokens for each of 32 prompts."""
    model = load_model(MODELS[name]())
    work = by_telos(model, prompts(model, 32))
    work()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    return found


WORKS: dict[str, Callable[[], Any]] = {
    "iql": lambda: offline("iql"),
    "td3_bc": lambda: offline("td3_bc"),
    "dpo": dpo,
    "sampling, tiny": lambda: sampling("tiny"),
    "sampling, llama": lambda: sampling("llama"),
}
TEXTS = {
    "iql": "100 updates by `fit`", "td3_bc": "100 updates by `fit`", "dpo": "3 updates on 32 pairs by `fit`",
    "sampling, tiny": "64 tokens for 32 prompts", "sampling, llama": "64 tokens for 32 prompts, 4.2 M parameters",
}  # fmt: skip


def top(found: Any) -> dict[str, Any]:
    """Milliseconds that operators take themselves, most first, their calls, and the sum over all."""
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    shown = [(event.key, event.self_cpu_time_total / 1e3, event.count) for event in events[:SHOWN]]
    return {"operators": shown, "sum": sum(event.self_cpu_time_total for event in events) / 1e3}


def table(name: str, found: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["", f"## {name}: {TEXTS[name]}", "", "| operator | own ms | share | calls |", "|---|---|---|---|"]
    for operator, time, calls in found["operators"]:
        lines.append(f"| `{operator}` | {time:.1f} | {time / found['sum']:.0%} | {calls} |")
    return "\n".join([*lines, f"| all | {found['sum']:.1f} | | |"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(WORKS)}; all by default")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of PROFILES.md")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(top(WORKS[options.worker]())))
        return
    text = (
        "# Where time goes\n\nMade by `python bench/profiles.py`: the operators with the most time of their own, by "
        f"torch.profiler (which\nslows small ones down). {measured(about(options.threads))}.\n"
    )
    for name in options.works or WORKS:
        text += table(name, told(environment(""), ("profiles.py", "--worker", name), options.threads))
    print(write_atomic(options.out / "PROFILES.md", text).read_text())


if __name__ == "__main__":
    main()
