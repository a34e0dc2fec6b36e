"""How cost grows: time and memory against data size, width, model size, lengths and seeds.

    python bench/growth.py [LINE ...] [--out FOLDER] [--threads N]

Every point is a process of its own. The exponent of a line is the slope of least squares through its points, of
logarithms: 0 does not grow, 1 grows as the thing itself. Memory is what the process allocates above its start, without
pages of mapped files (Linux). Writes growth.png, and a section of results.json and RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import measure
import telos
from offline_data import ACTIONS, OBSERVATIONS, columns
from pairs import WORDS, model_folder
from report import HERE, about, record
from resident import Watch
from telos.core.rng import Rng
from telos.data.records import Box, Transitions
from telos.judge.plots import PALETTE, figure
from telos.lm.model import load_model
from telos.lm.products import LanguagePolicy
from workers import environment, told

Found = dict[str, float]
"""Seconds by what they are of."""


class Stopwatch:
    """An `evaluate` for `fit`: called `times` a tick (by each seed), it notes when a tick begins."""

    def __init__(self, times: int = 1):
        self.times, self.calls = times, []

    def __call__(self, *_: object) -> dict[str, float]:
        self.calls.append(time.perf_counter())
        return {}

    @property
    def median(self) -> float:
        """Seconds of a tick; the first is a warm-up."""
        return statistics.median(np.diff(self.calls[:: self.times])[1:].tolist())


def fitted(method: Any, data: Any, each: int, ticks: int = 6, seeds: int | None = None, **given: Any) -> Found:
    """Seconds of an update, by `fit`, and until the first one began."""
    watch, begun = Stopwatch(seeds or 1), time.perf_counter()
    more = {} if seeds is None else {"seeds": seeds}
    method.fit(data, steps=each * ticks, device="cpu", evaluate=watch, evaluate_every=each, **more, **given)
    return {"update": watch.median / each, "start": watch.calls[0] - begun - watch.median}


def transitions() -> Transitions:
    return Transitions.validated(**columns(), action_space=Box((-1.0,) * ACTIONS, (1.0,) * ACTIONS))


def by_rows(rows: int) -> Found:
    """IQL on a mapped file; its path is in the environment, so that the process that measures did not write it."""
    file = os.environ["GROWTH_FILE"]
    return fitted(telos.IQL(), file, 20)


def by_width(width: int) -> Found:
    return {"update": fitted(telos.IQL(hidden=(width, width)), transitions(), 10)["update"]}


def by_seeds(seeds: int) -> Found:
    return {"update of all": fitted(telos.IQL(), transitions(), 10, seeds=seeds)["update"]}


def llama(width: int) -> str:
    """A folder with a model of 4 layers."""
    return model_folder(
        hidden_size=width, intermediate_size=width * 11 // 4, num_attention_heads=width // 32,
        num_key_value_heads=width // 32, max_position_embeddings=2048,
    )  # fmt: skip


def dpo(folder: str, length: int, batch: int = 4) -> Found:
    """Updates on pairs whose texts all have `length` tokens, a quarter of them prompt."""
    draw = Rng(0).numpy()

    def texts(words: int) -> list[str]:
        return [" ".join(f"w{i}" for i in draw.integers(3, WORDS, words)) for _ in range(batch)]

    prompts, answers = texts(length // 4), [[f" {text}" for text in texts(length - length // 4 - 1)] for _ in range(2)]
    method = telos.DPO(batch_size=batch, warmup_steps=0)
    return {"update": fitted(method, telos.Preferences(prompts, *answers), 1, 4, model=folder)["update"]}


def sampled(folder: str, new: int, batch: int = 32) -> Found:
    """Completions of `new` tokens for prompts of 16."""
    model = load_model(folder)
    rows = list(Rng(0).numpy().integers(3, WORDS, (batch, 16)))
    policy, times = LanguagePolicy(model), []
    for tokens in (8, new, new):
        begun = time.perf_counter()
        policy.generate(rows, rng=Rng(0).torch(), max_new_tokens=tokens)
        times.append(time.perf_counter() - begun)
    return {"completions": min(times[1:])}


@dataclass(frozen=True)
class Line:
    """One thing that grows.

    Args:
        work: what is measured; label: what grows; points: how far it does.
        run: measures one point.
        size: where the axis shows something else than the points.
    """

    work: str
    label: str
    points: tuple[int, ...]
    run: Callable[[int], Found]
    size: Callable[[int], float] = float


def parameters(width: int) -> float:
    """Of `llama`."""
    head = 2 * WORDS * width
    return head + 4 * (4 * width**2 + 3 * width * (width * 11 // 4) + 2 * width) + width


WIDTHS = (64, 128, 256, 512)
LINES = {
    "data": Line("IQL on a mapped file", "transitions", (10**4, 10**5, 10**6, 10**7), by_rows),
    "width": Line("IQL, two hidden layers", "width", (64, 128, 256, 512, 1024), by_width),
    "seeds": Line("IQL, several seeds in one process", "seeds", (1, 2, 4, 8, 16), by_seeds),
    "dpo model": Line("DPO, 4 pairs of 128 tokens", "parameters", WIDTHS, lambda w: dpo(llama(w), 128), parameters),
    "dpo length": Line("DPO, 4 pairs", "tokens of a text", (64, 128, 256, 512, 1024), lambda n: dpo(llama(256), n)),
    "sampling model": Line(
        "32 completions of 32 tokens", "parameters", WIDTHS, lambda w: sampled(llama(w), 32), parameters
    ),
    "sampling length": Line(
        "32 completions", "tokens of a completion", (32, 64, 128, 256, 512), lambda n: sampled(llama(256), n)
    ),
}


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of log y over log x, by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def worker(name: str, point: int) -> Found:
    """Seconds, and MB allocated above the start."""
    torch.rand(256, 256) @ torch.rand(256, 256)
    with Watch() as watch:
        found = LINES[name].run(point)
    return {**found, "MB": watch.most / 1e6}


def measured(name: str, threads: int) -> dict[str, Any]:
    """A line of the section: points, values and exponents by what they are of."""
    line, series = LINES[name], {}
    with tempfile.TemporaryDirectory(prefix="telos-bench-") as folder:
        for point in line.points:
            if name == "data":
                os.environ["GROWTH_FILE"] = f"{folder}/{point}.npz"
                measure.write(Path(os.environ["GROWTH_FILE"]), point, OBSERVATIONS, ACTIONS)
            found = told(environment(""), ("growth.py", "--worker", name, str(point)), threads)
            print(name, point, {key: round(value, 4) for key, value in found.items()}, flush=True)
            for key, value in found.items():
                series.setdefault(key, []).append(value)
    x = [line.size(point) for point in line.points]
    exponents = {key: exponent(x, values) for key, values in series.items()}
    return {"work": line.work, "label": line.label, "x": x, "series": series, "exponents": exponents}


def draw(lines: dict[str, Any], path: Path) -> None:
    """A panel a line: seconds on the left, MB dashed on the right."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    columns, rows = 3, -(-len(lines) // 3)
    with figure(path, width=11, height=2.8 * rows, rows=rows, columns=columns) as (_, axes):
        for place in axes.flat[len(lines) :]:
            place.set_visible(False)
        for place, line in zip(axes.flat, lines.values(), strict=False):
            right = place.twinx()
            for colour, (key, values) in zip(PALETTE, line["series"].items(), strict=False):
                look = {"color": "#5D5D5D", "linestyle": "--"} if key == "MB" else {"color": colour}
                (right if key == "MB" else place).plot(line["x"], values, marker="o", markersize=3, label=key, **look)
            slopes = ", ".join(f"{key} {slope:.2f}" for key, slope in line["exponents"].items())
            place.set(title=f"{line['work']}\nexponents: {slopes}", xlabel=line["label"], ylabel="seconds")
            right.set_ylabel("MB")
            for axis in (place, right):
                axis.set(xscale="log", yscale="log")
                axis.legend(loc="upper left" if axis is place else "lower right", fontsize=7)
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.yaxis.set_minor_locator(NullLocator())
            place.xaxis.set_minor_locator(NullLocator())
            if max(line["x"]) < 1e4:
                place.set_xticks(line["x"], [f"{x:g}" for x in line["x"]])
            right.grid(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", metavar="LINE", help=f"of {', '.join(LINES)}; all by default")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json, RESULTS.md and growth.png")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(options.worker[0], int(options.worker[1]))))
        return
    lines = {name: measured(name, options.threads) for name in options.lines or LINES}
    draw(lines, options.out / "growth.png")
    record("growth", {"lines": lines, **about(options.threads)}, options.out)


if __name__ == "__main__":
    main()
