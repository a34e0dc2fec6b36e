"""What a check shows: progress on standard error while arms run, then the table and the verdict."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from telos.judge.claim import Claim, part_metric
from telos.judge.run import Task
from telos.judge.verdict import LEAST_SEEDS, Holds, Part, Threshold, Within

STYLES = {"confirmed": "bold green", "refuted": "bold red", "not shown": "bold yellow", "indicative": "bold cyan"}
INTERVAL_WIDTH = 26
"""Characters that a mean with its interval takes in a table, with the space around it."""
TABLE: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "title_justify": "left", "title_style": "dim"}


class Board:
    """Progress of a check's arms: a live table on a terminal, elsewhere a line an arm; silent at TELOS_PROGRESS=0.

    Args:
        observer: is told of the start and of each run as dictionaries (see `check`), whatever TELOS_PROGRESS says.
    """

    def __init__(
        self, claim: Claim, tasks: Sequence[Task], jobs: int, observer: Callable[[dict[str, Any]], None] | None = None
    ):
        self.claim, self.tasks, self.jobs, self.observer = claim, tasks, jobs, observer
        self.metrics = list(dict.fromkeys([*map(part_metric, claim.parts), *claim.metrics]))
        self.values: dict[Task, dict[str, Any]] = {}
        self.cached = 0
        self.begun = time.monotonic()
        self.silent = os.environ.get("TELOS_PROGRESS", "1") == "0"
        self.console = Console(stderr=True)
        live = self.console.is_terminal and not self.silent
        self.live = Live(get_renderable=self.render, console=self.console, refresh_per_second=2) if live else None

    def __enter__(self) -> Board:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live:
            self.live.stop()

    def found(self, values: Mapping[Task, dict[str, Any]]) -> None:
        """These came from the cache; said once, before the first run, also where there are none."""
        self.values |= values
        self.cached = len(values)
        if values:
            self._print(f"{len(values)} of {len(self.tasks)} arms from the cache")
        if self.observer:
            self.observer(self.start_event())
            for count, (task, value) in enumerate(values.items(), 1):
                self.observer(self.run_event(task, value, count, cached=True))

    def done(self, task: Task, value: dict[str, Any]) -> None:
        """This one has just ended."""
        self.values[task] = value
        if self.live is None:
            place = f"{len(self.values)}/{len(self.tasks)}"
            left = f", about {self.seconds_left():.0f} s left" if len(self.values) < len(self.tasks) else ""
            metric, numbers = self.measured([value])
            measured = f"  {metric} {numbers[0]:.4g}" if numbers else ""
            self._print(
                f"{self.label(task.arm)} seed {task.seed} done in {value['seconds']:.1f} s ({place}{left}){measured}"
            )
        if self.observer:
            self.observer(self.run_event(task, value, len(self.values), cached=False))

    def start_event(self) -> dict[str, Any]:
        """What will run: arms with their labels, metrics with their meanings (judged ones first), seeds."""
        first = self.tasks[0]
        return {
            "event": "start", "slug": first.slug.rsplit(".", 1)[-1], "scale": first.scale, "mode": first.budget,
            "runs": len(self.tasks), "cached": self.cached, "arms": {arm: self.label(arm) for arm in self.claim.arms},
            "metrics": {metric: self.claim.metrics[metric] for metric in self.metrics},
            "seeds": sorted({task.seed for task in self.tasks}), "minutes": self.claim.minutes,
        }  # fmt: skip

    def run_event(self, task: Task, value: Mapping[str, Any], count: int, cached: bool) -> dict[str, Any]:
        """One run that is there now, the `count`-th, and the seconds left."""
        return {
            "event": "run", "arm": task.arm, "label": self.label(task.arm), "seed": task.seed,
            "seconds": value["seconds"], "measures": value["measures"], "done": count, "total": len(self.tasks),
            "left": round(self.seconds_left(), 1), "cached": cached,
        }  # fmt: skip

    def label(self, arm: str) -> str:
        return self.claim.arms[arm].label or arm

    def measured(self, values: Sequence[Mapping[str, Any]]) -> tuple[str, list[float]]:
        """The first metric that these values have, the parts' metrics before others (those may be derived later)."""
        for metric in self.metrics:
            numbers = [value["measures"][metric] for value in values if metric in value["measures"]]
            if numbers:
                return metric, numbers
        return "", []

    def seconds_left(self) -> float:
        """The time of what is missing: each arm's own mean, or the mean of all where an arm has not ended yet."""
        seconds: dict[str, list[float]] = {}
        for task, value in self.values.items():
            seconds.setdefault(task.arm, []).append(value["seconds"])
        every = [second for column in seconds.values() for second in column]
        if not every:
            return 60 * self.claim.minutes
        left = 0.0
        for task in self.tasks:
            if task not in self.values:
                column = seconds.get(task.arm, every)
                left += sum(column) / len(column)
        return left / self.jobs

    def render(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for header in ("arm", "seeds", "mean so far"):
            table.add_column(header, justify="left" if header == "arm" else "right", style="dim")
        for arm in self.claim.arms:
            mine = [value for task, value in self.values.items() if task.arm == arm]
            metric, numbers = self.measured(mine)
            total = sum(task.arm == arm for task in self.tasks)
            mean = f"{metric} {sum(numbers) / len(numbers):.4g}" if numbers else ""
            table.add_row(escape(self.label(arm)), f"{len(mine)}/{total}", mean)
        bar = ProgressBar(total=len(self.tasks), completed=len(self.values), width=40)
        cached = f", {self.cached} from the cache" if self.cached else ""
        passed, left = time.monotonic() - self.begun, self.seconds_left()
        line = Text(f"  {len(self.values)}/{len(self.tasks)} runs{cached}, {passed:.0f} s, about {left:.0f} s left")
        return Group(table, bar, line)

    def _print(self, text: str) -> None:
        if not self.silent:
            print(text, file=sys.stderr, flush=True)


def describe(part: Part, arms: Mapping[str, Mapping[str, Any]]) -> str:
    """The part in words, with the arms' labels."""
    labels = {name: arm["label"] for name, arm in arms.items()}
    if isinstance(part, Holds):
        return f"{part.check} holds exactly in {labels[part.arm]}"
    if isinstance(part, Within):
        return f"{part.metric}: {labels[part.a]} equals {labels[part.b]} within {part.tolerance:g}"
    if isinstance(part, Threshold):
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (("at least", part.at_least), ("at most", part.at_most))
            if bound is not None
        ]
        return f"{part.metric} of {labels[part.a]} is {' and '.join(bounds)}"
    sign = "<" if part.lower_is_better else ">"
    if part.margin < 0:
        return f"{part.metric}: {labels[part.a]} not worse than {labels[part.b]} by more than {-part.margin:g}"
    by = f" by more than {part.margin:g}" if part.margin else ""
    return f"{part.metric}: {labels[part.a]} {sign} {labels[part.b]}{by}"


def show(result: Mapping[str, Any], written: Sequence[Path] = (), console: Console | None = None) -> None:
    """Prints a result: the claim, a row an arm, a row a part, the verdict; `written` are the files to name."""
    screen = console or Console()
    claim, arms = result["claim"], result["arms"]
    screen.print(Text(f"{result['slug']} ({result['scale']})", style="bold"))
    screen.print(Text(claim["statement"]))
    screen.print(Text(f"{claim['source']} · {claim['world']}", style="dim"))
    screen.print(_arms_table(result, screen.width))
    screen.print(_parts_table(result))
    for metric, meaning in claim["metrics"].items():
        screen.print(Text(f"{metric}: {meaning}", style="dim"))
    screen.print(Text.assemble((result["verdict"], STYLES[result["verdict"]]), verdict_note(result)))
    if result["stale"]:
        screen.print(Text("stale: the code has changed since, and no longer gives these numbers", style="bold yellow"))
    if result["quick"]:
        screen.print(Text("quick: every part ran on a tiny budget; these numbers measure nothing", style="dim"))
    runs = sum(len(arm["runs"]) for arm in arms.values() if arm["run"])
    times = f"{result['wall_seconds']:.0f} s (arms: {result['arm_seconds']:.0f} s)"
    screen.print(Text(f"{len(result['seeds'])} seeds, {runs} runs, {times}"))
    for path in written:
        screen.print(Text(str(path)), soft_wrap=True)


def verdict_note(result: Mapping[str, Any]) -> str:
    """What the verdict's word means here."""
    if result["verdict"] == "indicative":
        return f": {len(result['seeds'])} seeds are too few for a verdict ({LEAST_SEEDS} give one)"
    if result["verdict"] == "refuted":
        return f": {sum(p['status'] == 'refuted' for p in result['parts'])} of {len(result['parts'])} parts refuted"
    return f": {sum(p['status'] == 'confirmed' for p in result['parts'])} of {len(result['parts'])} parts hold"


def number(value: float) -> str:
    """Four significant digits, without an exponent for everyday sizes."""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}" if abs(value) >= 1e6 else f"{value:.0f}"


def with_interval(estimate: float, interval: Mapping[str, float] | None) -> str:
    """The estimate, followed by its interval in brackets where it has one."""
    if interval is None:
        return number(estimate)
    return f"{number(estimate)} [{number(interval['low'])}, {number(interval['high'])}]"


def _arms_table(result: Mapping[str, Any], width: int) -> Table:
    """As many metrics as fit in `width` characters, judged ones first."""
    checks = {part["part"]["check"] for part in result["parts"] if part["part"]["kind"] == "Holds"}
    others = [metric for metric in result["claim"]["metrics"] if metric not in checks]
    metrics = list(dict.fromkeys([*result["judged"], *others]))
    metrics = [m for m in metrics if any(m in arm["summary"] for arm in result["arms"].values())]
    label_width = max(len(arm["label"]) for arm in result["arms"].values())
    metrics = metrics[: max(1, (width - label_width - len("  s a run ")) // INTERVAL_WIDTH)]
    table = Table(title="mean over seeds [95 % interval]", **TABLE)
    table.add_column("arm", no_wrap=True)
    for metric in metrics:
        table.add_column(escape(metric), justify="right", no_wrap=True)
    table.add_column("s a run", justify="right")
    for name in result["order"]:
        arm = result["arms"][name]
        cells = [
            with_interval(arm["summary"][metric]["mean"], arm["summary"][metric]["interval"])
            if metric in arm["summary"]
            else ""
            for metric in metrics
        ]
        table.add_row(escape(arm["label"]), *map(escape, cells), f"{arm['seconds']:.1f}" if arm["run"] else "")
    return table


def _parts_table(result: Mapping[str, Any]) -> Table:
    table = Table(title="parts, on paired seeds", **TABLE)
    table.add_column("part")
    table.add_column("measured [95 % interval]", justify="right", no_wrap=True)
    table.add_column("P(better)", justify="right")
    table.add_column("status", no_wrap=True)
    for part in result["parts"]:
        improvement = part["probability_of_improvement"]
        interval = part["interval"]
        if interval is None:
            measured = f"{sum(value == 1 for value in part['values'])} of {part['seeds']} seeds"
        else:
            measured = with_interval(interval["estimate"], interval)
        table.add_row(
            escape(part["text"]), escape(measured), f"{improvement['estimate']:.2f}" if improvement else "",
            Text(part["status"], style=STYLES[part["status"]]),
        )  # fmt: skip
    return table
