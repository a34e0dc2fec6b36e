"""`check` runs a claim: arms on seeds, the verdict, the table, the result file and the picture."""

from __future__ import annotations

import copy
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import telos
from telos.core.errors import TelosError
from telos.core.files import read_json, write_json
from telos.core.registry import method_class
from telos.judge import cache
from telos.judge.claim import Budget, Claim, load_claim, part_from_json, part_metric
from telos.judge.closure import closure_hash
from telos.judge.plots import draw
from telos.judge.report import Board, describe, show
from telos.judge.results import (
    Result,
    git_state,
    history_with,
    mark_stale,
    now,
    read_result,
    repository,
    results_folder,
)
from telos.judge.run import Task, default_jobs, run_tasks
from telos.judge.stats import binary_mean, bootstrap_iqm, bootstrap_mean, paired_t
from telos.judge.verdict import Holds, Verdict, judge_parts

QUICK_SEEDS = 2
DIGEST_RTOL, DIGEST_ATOL = 1e-3, 1e-4
ELSEWHERE_RTOL, ELSEWHERE_ATOL = 5e-2, 1e-3
"""On another kind of processor than the recorded one: there rounding differs, and it grows in 20 steps (by 2 % at most
where AMD's and Intel's were compared)."""

Runs = dict[str, list[dict[str, Any]]]
"""Arm -> one run a seed: {"seed", "measures", "points", "digest", "seconds"}."""

Observer = Callable[[dict[str, Any]], None]
"""Hears of a check as it runs, in this process, in dictionaries of JSON:

    {"event": "start", "slug", "scale", "mode": "full" | "quick", "runs", "cached", "arms": {name: label},
     "metrics": {name: meaning, judged ones first}, "seeds", "minutes": the claim's own}
    {"event": "run", "arm", "label", "seed", "seconds", "measures": {metric: number}, "done", "total",
     "left": seconds, "cached"}, for each run, those from the cache first
    {"event": "verdict", "verdict", "parts": [{"text", "status", "interval"}], "quick"}, when files are written
"""


def check(
    slug: str,
    *,
    scale: str = "laptop",
    quick: bool = False,
    out: str | Path | None = None,
    jobs: int | None = None,
    record: bool = False,
    seeds: tuple[int, ...] | None = None,
    root: Path | None = None,
    observer: Observer | None = None,
) -> Result:
    """Runs the claim of `slug`, prints its table and verdict, writes result.json and figure.png, returns the result.

    Args:
        slug: a paper's slug, or the dotted name of a module with CLAIMS.
        quick: two seeds and a tiny budget: every part runs and nothing is written.
        out: the folder of the result; runs/check/<slug>.<scale> by default.
        jobs: worker processes; as many as cores by default.
        record: writes to results/ of the source tree instead; refused where code is uncommitted.
        seeds: other seeds than the claim's, to develop with (from 1000 up); never recorded.
        root: the source tree for git and `record`; the one this package runs from by default.
        observer: hears of the start, of each run and of the verdict.

    Raises:
        TelosError: unknown slug or scale, a failing arm, a dirty source tree with `record`.
    """
    claim = load_claim(slug, scale)
    if jobs is not None and jobs < 1:
        raise TelosError("jobs must be positive", got=f"{jobs}", fix="--jobs 1 or more")
    root = root or repository()
    used = tuple(seeds or claim.seeds)[: QUICK_SEEDS if quick else None]
    if record:
        _refuse_record(quick, seeds, root)
    begun = time.monotonic()
    budget: Budget = "quick" if quick else "full"
    runs = _run(slug, scale, claim, used, budget, default_jobs() if jobs is None else jobs, observer)
    result = _result(slug, scale, claim, used, runs, quick)
    result["wall_seconds"] = round(time.monotonic() - begun, 1)
    git = git_state(root)
    result["git"] = {"commit": git["commit"], "dirty": bool(git["dirty"])} if git else None
    if record:
        _refuse_record(quick, seeds, root)
    written = [] if quick else _write(result, claim, out, results_folder(root) if record else None)
    show(result, written)
    if observer:
        parts = [{key: part[key] for key in ("text", "status", "interval")} for part in result["parts"]]
        observer({"event": "verdict", "verdict": result["verdict"], "parts": parts, "quick": quick})
    return result


def stale(slug: str, scale: str = "laptop", *, jobs: int | None = None, folder: Path | None = None) -> str:
    """Whether a recorded result still speaks for the code.

    Returns:
        "fresh": the code under it has not changed, or `verify` has looked since; "same digest": it has, and 20 steps
        of each arm still give the recorded numbers (more loosely on another kind of processor); "stale": they do not,
        or the claim's parts, seeds or arms are others, or the recorded runs are judged otherwise today.
    """
    stored = read_result(slug.rsplit(".", 1)[-1], scale, folder)
    claim = load_claim(slug, scale)
    stated = claim.to_json()
    arms = {name: arm.to_json() for name, arm in claim.arms.items()}
    recorded = {name: (arm["run"], completed(arm["options"])) for name, arm in stored["arms"].items() if arm["run"]}
    asked = {name: (arm["run"], arm["options"]) for name, arm in arms.items()}
    if any(stated[key] != stored["claim"][key] for key in ("parts", "seeds")) or asked != recorded:
        return "stale"
    if rejudge(stored, claim).status != stored["verdict"]:
        return "stale"
    if claim_closure(claim) in (stored["closure"], stored.get("verified", {}).get("closure")):
        return "fresh"
    runs = _run(slug, scale, claim, claim.seeds[:1], "digest", default_jobs() if jobs is None else jobs)
    here = stored["machine"]["cpu"] == machine()["cpu"]
    same = all(_close(stored["arms"][name]["digest"], runs[name][0]["digest"], here) for name in claim.arms)
    return "same digest" if same else "stale"


def completed(options: Any) -> Any:
    """An arm's recorded options, with the defaults of those that its methods have gained since."""
    if not isinstance(options, dict):
        return [completed(value) for value in options] if isinstance(options, list) else options
    rest = {name: completed(value) for name, value in options.items()}
    if "use" not in rest:
        return rest
    slug = rest.pop("use")
    try:
        return {"use": slug, **method_class(slug).from_options(rest).options()}
    except TelosError:
        return options  # an option or a method of old, which no arm of today has


def verify(slug: str, scale: str = "laptop", *, jobs: int | None = None, root: Path | None = None) -> str:
    """`stale`, and its answer written into the recorded result: the code it speaks for from now on, or the mark.

    Raises:
        TelosError: no such result, or a source tree with uncommitted changes, which no commit could name.
    """
    root = root or repository()
    _refuse_record(False, None, root)
    folder = results_folder(root)
    assert folder is not None
    state, name, git = stale(slug, scale, jobs=jobs, folder=folder), slug.rsplit(".", 1)[-1], git_state(root)
    mark_stale(name, scale, state == "stale", folder)
    if state == "same digest" and git is not None:
        verified = {"closure": claim_closure(load_claim(slug, scale)), "commit": git["commit"], "date": now()}
        write_json(folder / f"{name}.{scale}.json", {**read_result(name, scale, folder), "verified": verified})
    return state


def rejudge(result: Mapping[str, Any], claim: Claim | None = None) -> Verdict:
    """The verdict computed again from the runs that a result holds; with `claim`, its derived metrics too."""
    arms = copy.deepcopy(result["arms"])
    if claim is not None and claim.derive is not None:
        for index, seed in enumerate(result["seeds"]):
            _add_derived(arms, claim, index, seed)
    table = {name: _columns(arm["runs"]) for name, arm in arms.items()}
    return judge_parts([part_from_json(part["part"]) for part in result["parts"]], table)


def claim_closure(claim: Claim) -> str:
    """The hash of all code that the claim's arms reach."""
    return closure_hash(set().union(*(arm.modules() for arm in claim.arms.values())))


def _run(
    slug: str,
    scale: str,
    claim: Claim,
    seeds: Iterable[int],
    budget: Budget,
    jobs: int,
    observer: Observer | None = None,
) -> Runs:
    """All arms on all seeds, from the cache where it has them; with a full budget each arm's digest too, first."""
    seeds = tuple(seeds)
    wanted: list[tuple[str, int, Budget]] = [(arm, seed, budget) for seed in seeds for arm in claim.arms]
    first: list[tuple[str, int, Budget]] = [(arm, seeds[0], "digest") for arm in claim.arms]
    tasks = [
        Task(slug, scale, arm, seed, kind, cache.arm_key(claim.arms[arm], seed, kind))
        for arm, seed, kind in [*(first if budget == "full" else []), *wanted]
    ]
    values = {task: value for task in tasks if (value := cache.find(task.key)) is not None}
    with Board(claim, [task for task in tasks if task.budget == budget], jobs, observer) as board:
        board.found({task: value for task, value in values.items() if task.budget == budget})

        def done(task: Task, value: dict[str, Any]) -> None:
            values[task] = value
            if task.budget == budget:
                board.done(task, value)

        run_tasks([task for task in tasks if task not in values], jobs, done)
    runs: Runs = {arm: [] for arm in claim.arms}
    digests = {task.arm: values[task]["digest"] for task in tasks if task.budget == "digest"}
    for task in tasks:
        if task.budget == budget:
            runs[task.arm].append({"seed": task.seed, **values[task], "digest": digests.get(task.arm, [])})
    return runs


def _result(slug: str, scale: str, claim: Claim, seeds: tuple[int, ...], runs: Runs, quick: bool) -> Result:
    arms: dict[str, dict[str, Any]] = {
        name: {
            **arm.to_json(), "label": arm.label or name, "digest": runs[name][0]["digest"],
            "runs": [{key: run[key] for key in ("seed", "measures", "points", "seconds")} for run in runs[name]],
            "seconds": round(float(np.mean([run["seconds"] for run in runs[name]])), 3),
        }
        for name, arm in claim.arms.items()
    }  # fmt: skip
    if claim.derive is not None:
        for index, seed in enumerate(seeds):
            _add_derived(arms, claim, index, seed)
    _summarise(arms, len(seeds))
    verdict = judge_parts(claim.parts, {name: _columns(arm["runs"]) for name, arm in arms.items()})
    parts = [{**part.to_json(), "text": describe(part.part, arms)} for part in verdict.parts]
    return {
        "slug": slug.rsplit(".", 1)[-1], "scale": scale, "quick": quick, "stale": False, "claim": claim.to_json(),
        "seeds": list(seeds), "arms": arms, "order": list(arms), "parts": parts, "verdict": verdict.status,
        "judged": _judged(claim),
        "arm_seconds": round(sum(run["seconds"] for arm in arms.values() for run in arm["runs"]), 1),
        "closure": claim_closure(claim), "machine": machine(), "versions": versions(),
        "date": now(),
    }  # fmt: skip


def _write(result: Result, claim: Claim, out: str | Path | None, recorded: Path | None) -> list[Path]:
    """Writes the result and its picture: into the folder `recorded` with the history, else into one of their own."""
    name = f"{result['slug']}.{result['scale']}"
    if recorded is not None:
        file, picture = recorded / f"{name}.json", recorded / f"{name}.png"
        result["history"] = history_with(read_json(file)) if file.is_file() else []
    else:
        folder = Path(out) if out is not None else Path("runs") / "check" / name
        file, picture = folder / "result.json", folder / "figure.png"
    write_json(file, result)
    return [file, picture] if draw(result, picture, claim.plot) else [file]


def _add_derived(arms: dict[str, dict[str, Any]], claim: Claim, index: int, seed: int) -> None:
    assert claim.derive is not None
    measured = {
        name: {**arms[name]["runs"][index]["measures"], "points": arms[name]["runs"][index]["points"]}
        for name in claim.arms
    }
    for name, metrics in claim.derive(measured).items():
        empty = {"run": None, "label": name, "group": "", "options": {}, "digest": [], "runs": [], "seconds": 0.0}
        rows = arms.setdefault(name, empty)["runs"]
        if len(rows) == index:
            rows.append({"seed": seed, "measures": {}, "points": [], "seconds": 0.0})
        rows[index]["measures"] |= {metric: float(value) for metric, value in metrics.items()}


def _columns(runs: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Metric -> one value a seed."""
    columns: dict[str, list[float]] = {}
    for run in runs:
        for metric, value in run["measures"].items():
            columns.setdefault(metric, []).append(value)
    return columns


def _judged(claim: Claim) -> list[str]:
    """The metrics worth a column: those of measured parts, or where all parts are exact checks, the checks."""
    measured = [part_metric(part) for part in claim.parts if not isinstance(part, Holds)]
    return list(dict.fromkeys(measured or [part_metric(part) for part in claim.parts]))


def _summarise(arms: dict[str, dict[str, Any]], seeds: int) -> None:
    """Gives each arm its summary. A metric counts as 0 or 1 if it is so in every arm: a share may be 1 on all seeds."""
    columns = {name: _columns(arm["runs"]) for name, arm in arms.items()}
    others = {
        metric for column in columns.values() for metric, values in column.items() if not set(values) <= {0.0, 1.0}
    }
    for name, arm in arms.items():
        arm["summary"] = {
            metric: _summary(values, metric not in others)
            for metric, values in columns[name].items()
            if len(values) == seeds
        }


def _summary(values: list[float], binary: bool) -> dict[str, Any]:
    """The mean with the interval that verdicts use (none for one seed), and bootstrap and IQM beside it."""
    interval = binary_mean(values) if binary else paired_t(values) if len(values) > 1 else None
    return {
        "mean": float(np.mean(values)), "interval": interval.to_json() if interval else None,
        "bootstrap": bootstrap_mean(values, np.random.default_rng(0)).to_json(),
        "iqm": bootstrap_iqm(values, np.random.default_rng(0)).to_json(),
    }  # fmt: skip


def versions() -> dict[str, str]:
    """The versions that numbers depend on."""
    return {
        "telos": telos.__version__, "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy")},
    }  # fmt: skip


def machine() -> dict[str, Any]:
    """The processor's name and its cores; nothing that names the machine itself."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {"cpu": cpu, "cores": os.cpu_count() or 1}


def _refuse_record(quick: bool, seeds: tuple[int, ...] | None, root: Path | None) -> None:
    if quick or seeds is not None:
        raise TelosError("only a whole claim is recorded", fix="leave out --quick and --seeds")
    git = git_state(root)
    if root is None or git is None or results_folder(root) is None:
        raise TelosError("no source tree to record in", expected="a git checkout of telos with a folder results/")
    if git["dirty"]:
        raise TelosError(
            "the source tree has uncommitted changes", expected="a commit that the result can name",
            got=", ".join(git["dirty"][:5]), fix="commit first (changes under results/ do not count)",
        )  # fmt: skip


def _close(a: list[float], b: list[float], here: bool) -> bool:
    rtol, atol = (DIGEST_RTOL, DIGEST_ATOL) if here else (ELSEWHERE_RTOL, ELSEWHERE_ATOL)
    return len(a) == len(b) and bool(np.allclose(a, b, rtol=rtol, atol=atol))
