"""A study of data sets: which methods do well on which kind of data of one environment (arXiv 2111.04714).

For each seed a Double DQN learns in the environment, for as many steps as the data sets have transitions. All that it
saw is the set "replay"; a random policy and its last greedy one, the expert, record the others (telos.data.schemes).
Every method learns from every set and is evaluated on the way in whole episodes:

    omega = (g - g_random) / (g_expert - g_random)

with g the mean return of an evaluation, the best one (as the paper) or the last, g_random the mean return of the random
set and g_expert the best evaluation of the online learner; so the expert set's TQ may lie below 1. TQ lies between the
same two, SACo compares with the replay set. The paper averages five runs on a data set before it takes the best; here
each data set is learnt from once. A study is a folder; the same call goes on with it after a kill:

    study.json                  settings and, once it is done, the table
    online/seed-S/              the online learner's run
    data/seed-S/SCHEME.npz      five sets              data/seed-S.json                their measures
    runs/NAME-SCHEME/seed-S/    one call of `fit`      runs/NAME-SCHEME/seed-S.json    its evaluations
    figure.png                  the plane of TQ and SACo, a panel a method
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from telos.core.errors import TelosError
from telos.core.files import read_json, write_json
from telos.core.method import Method, Spec
from telos.core.products import Policy, Product
from telos.core.registry import class_slug, method_class
from telos.core.rng import Rng
from telos.data.environments import action_space, make, record
from telos.data.formats import load, save_npz
from telos.data.measures import mean_return, measure
from telos.data.records import Discrete, Transitions
from telos.data.schemes import SCHEMES, Scheme, generate
from telos.judge.compare import described, names, open_folder, place, use_options, work_off
from telos.judge.evaluate import evaluate
from telos.judge.plots import MARKERS, figure

EVALUATION_SEED = 10_000
MEASURES = {"tq": "TQ", "saco": "SACo"}
SAMPLED = ("bc",)
"""Methods whose policies draw their actions, as in the paper; those of all others take the best one."""
WIDE = {"hidden": (256, 256, 256), "batch_size": 128}
AS_PAPER: dict[str, dict[str, Any]] = {
    "bc": {**WIDE, "learning_rate": 1e-4, "normalise": False},
    "bcq": {"learning_rate": 1e-4},
    "cql": {"alpha": 0.1, "learning_rate": 1e-4, "batch_size": 128},
    "crr": WIDE,
}
"""The paper's settings where a method has other defaults."""


@dataclass(frozen=True)
class Settings:
    """What a study must agree in to go on, besides its methods; see `study`. `online`: the online learner's options."""

    env: str
    steps: int
    transitions: int
    seeds: int
    evaluations: int
    episodes: int
    device: str
    online: dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One data set.

    Args:
        best, last: omega of each method by name, of its best and its last evaluation; None where it failed.
    """

    scheme: str
    seed: int
    tq: float
    saco: float
    best: Mapping[str, float | None]
    last: Mapping[str, float | None]


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of a method's omega ("best" or "last") with "tq" or "saco" over all data sets, and its p: how likely
    so large an r is without any relation. None for fewer than three data sets, or where one of the two is constant."""

    method: str
    omega: str
    measure: str
    r: float | None
    p: float | None


@dataclass(frozen=True)
class Study:
    """The table of a study, its correlations, why methods failed (by method, the first time), and its folder."""

    env: str
    points: tuple[Point, ...]
    correlations: tuple[Correlation, ...]
    errors: Mapping[str, str]
    folder: Path

    def to_json(self) -> dict[str, Any]:
        """Everything but the folder as JSON."""
        return {name: value for name, value in asdict(self).items() if name != "folder"}


def study(
    env: str, methods: Sequence[str | Method] | Mapping[str, str | Method | Mapping[str, Any]], *, steps: int,
    transitions: int, seeds: int = 2, discount: float = 0.99, online: Mapping[str, Any] | None = None,
    evaluations: int = 20, episodes: int = 10, out: str | Path, device: str = "auto", jobs: int | None = None,
    said: Callable[[str], None] = print,
) -> Study:  # fmt: skip
    """Makes five data sets a seed, measures them, trains every method on each and correlates scores with measures.

    Args:
        env: a registered Gymnasium environment with discrete actions.
        methods: slugs or methods; a mapping gives them names of their own, and slugs options, as {"cql": {"alpha": 1},
            "wide": {"use": "dqn", "hidden": [512, 512]}}. Slugs stand for the paper's settings, with `discount`.
        steps: updates of each method on each data set; the paper's are 500,000.
        transitions: of each data set, and steps of the online learner; the paper's are 100,000.
        seeds: 0 .. seeds-1; the paper has 5.
        discount: of online learner and methods; the paper's is 0.95 (CartPole, MiniGrid) or 0.99.
        online: options of the online DQN, where they are not the paper's.
        evaluations: of each run, also of the online one, evenly spread over its updates; the paper has 500.
        episodes: of an evaluation, the same starts for all.
        out: the study's folder; if it holds an unfinished one of the same settings, that goes on.
        jobs: processes of one thread each; by default one a core, and a single one on a GPU.
        said: hears a line whenever data sets or a run are done.

    Raises:
        TelosError: an environment that is not known or has continuous actions, a method that is not known or cannot
            learn from its data, options out of range, a folder of something else; an online learner that gets no
            better than chance. A run that fails leaves a gap in the table; the others go on.
    """
    learner = use_options({"use": "dqn", "batch_size": 32, "discount": discount, **(online or {})})
    settings = Settings(env, steps, transitions, seeds, evaluations, episodes, device, learner.options())
    check(settings)
    named = asked(methods, discount, settings)
    folder = Path(out)
    wanted = {"settings": asdict(settings), "methods": described(named)}
    open_folder(folder, wanted, "study")
    shared = (folder, settings, described(named))
    sets: dict[int, dict[str, Any]] = {
        seed: read_json(file)
        for seed in range(seeds)
        if (file := sets_place(folder, seed).with_suffix(".json")).is_file()
    }

    def made(task: tuple[int], value: dict[str, Any]) -> None:
        if "error" in value:
            raise TelosError(f"the data sets of seed {task[0]} could not be made", got=value["error"])
        sets[task[0]] = value
        said(f"data {len(sets)}/{seeds}  seed {task[0]}: the online learner earns {value['expert_return']:.4g} at best")

    work_off(collect, [(seed,) for seed in range(seeds) if seed not in sets], made, shared, jobs=jobs, device=device)
    tasks = [(name, scheme, seed) for seed in range(seeds) for scheme in SCHEMES for name in named]
    found: dict[tuple[str, str, int], dict[str, Any]] = {
        task: read_json(file) for task in tasks if (file := run_place(folder, *task).with_suffix(".json")).is_file()
    }

    def trained(task: tuple[str, str, int], value: dict[str, Any]) -> None:
        found[task] = value
        outcome = f"failed: {value['error'].splitlines()[0]}" if "error" in value else f"{value['returns'][-1]:.4g}"
        said(f"{len(found)}/{len(tasks)}  {task[0]} on {task[1]}, seed {task[2]}: {outcome}")

    work_off(train, [task for task in tasks if task not in found], trained, shared, jobs=jobs, device=device)
    result = judged(env, list(named), sets, found, folder)
    write_json(folder / "study.json", {**wanted, "table": result.to_json()})
    draw(result, folder / "figure.png")
    return result


def check(settings: Settings) -> None:
    """TelosError for options out of range and for an environment without discrete actions."""
    counts = {name: getattr(settings, name) for name in ("steps", "seeds", "evaluations", "episodes")}
    if min(counts.values()) < 1:
        raise TelosError("study: an option is out of range", expected="1 or more of each", got=str(counts))
    if online_updates(settings) < 1:
        raise TelosError(
            "study: the online learner learns nothing", got=str(settings.transitions),
            expected=f"transitions above its warm-up, {settings.online['warmup']}",
            fix="more transitions, or a shorter warm-up of the online learner",
        )  # fmt: skip
    made = make(settings.env)
    space = action_space(made.action_space, f"environment '{settings.env}'")
    made.close()
    if not isinstance(space, Discrete):
        raise TelosError(
            f"environment '{settings.env}' has continuous actions", expected="discrete actions: DQN makes the data",
            got=f"{space.size} continuous dimensions", fix="compare methods on recorded data: `telos compare --env`",
        )  # fmt: skip


def asked(methods: Any, discount: float, settings: Settings) -> dict[str, Method]:
    """Name -> method; TelosError unless each could begin to learn from a few steps of the environment."""
    if isinstance(methods, Mapping):
        settled: Any = {name: settle(name, method, discount) for name, method in methods.items()}
    else:
        settled = [settle(method, method, discount) for method in methods]
    spec = Spec(record(settings.env, steps=32), {}, settings.steps, torch.device("cpu"), Rng(0))
    named = names(settled, spec.data)
    for method in named.values():
        next(method.stages(method.prepare(spec), Rng(0)))
    return named


def settle(name: Any, method: str | Method | Mapping[str, Any], discount: float) -> Method:
    """A method as it is, or what a slug or options name, with the paper's settings where nothing else is said."""
    if isinstance(method, Method):
        return method
    options = {"use": method} if isinstance(method, str) else {"use": name, **method}
    cls = method_class(options["use"])
    shared = {"discount": discount} if "discount" in {f.name for f in fields(cls)} else {}
    return use_options({**shared, **AS_PAPER.get(class_slug(cls), {}), **options})


def online_updates(settings: Settings) -> int:
    """After which the online learner has seen as many transitions as a data set has."""
    return (settings.transitions - settings.online["warmup"]) // settings.online["steps_per_update"]


def sets_place(folder: Path, seed: int) -> Path:
    """The folder of a seed's five data sets."""
    return folder / "data" / f"seed-{seed}"


def run_place(folder: Path, name: str, scheme: str, seed: int) -> Path:
    """The folder of one run."""
    return place(folder, f"{name}-{scheme}", seed)


def scored(settings: Settings, updates: int, explore: bool = False) -> dict[str, Any]:
    """What `fit` wants in order to evaluate a policy in the environment."""

    def measured(step: int, product: Callable[[], Product]) -> dict[str, float]:
        policy: Any = product()
        found = evaluate(policy, settings.env, episodes=settings.episodes, seed=EVALUATION_SEED, explore=explore)
        return {"return": found.mean}

    return {"evaluate": measured, "evaluate_every": max(1, updates // settings.evaluations)}


def returns(run: Path) -> list[float]:
    """The evaluations of a run, in order: its metrics keep them over a kill."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["return"] for row in rows if "return" in row]


def collect(shared: tuple[Path, Settings, Any], seed: int) -> dict[str, Any]:
    """In a worker: a seed's online learner, from its checkpoint if it has one, its data sets and their measures."""
    folder, settings, _ = shared
    run, sets = folder / "online" / f"seed-{seed}", sets_place(folder, seed)
    updates = online_updates(settings)
    try:
        expert = use_options({"use": "dqn", **settings.online}).fit(
            steps=updates, seed=seed, device=settings.device, out=run, resume=(run / "run.json").is_file(),
            env=settings.env, experience=str(sets / "replay.npz"), **scored(settings, updates),
        )  # fmt: skip
        made = {scheme: dataset(settings, scheme, expert, sets, seed) for scheme in SCHEMES}
        value = measures(made, returns(run), seed)
    except TelosError as error:
        return {"error": str(error)}
    write_json(sets.with_suffix(".json"), value)
    return value


def dataset(settings: Settings, scheme: Scheme, expert: Policy, sets: Path, seed: int) -> Transitions:
    """The data set of a scheme, written as .npz; the replay has been written already."""
    file = sets / f"{scheme}.npz"
    if scheme != "replay":
        save_npz(generate(settings.env, scheme, expert, steps=settings.transitions, seed=seed), file)
    data = load(file, kind=Transitions)
    assert isinstance(data, Transitions)
    return data


def measures(made: Mapping[Any, Transitions], online: Sequence[float], seed: int) -> dict[str, Any]:
    """What omega lies between, and TQ and SACo of each data set.

    Args:
        made: scheme -> data set.
        online: evaluations of the online learner.

    Raises:
        TelosError: none of these is above the random set's mean return.
    """
    worst, best = mean_return(made["random"]), max(online)
    if best <= worst:
        raise TelosError(
            "the online learner gets no better than a random policy, so there is no expert to compare with",
            expected=f"an evaluation above {worst:.4g}", got=f"{best:.4g} at best",
            fix="more transitions, or other options of the online learner",
        )  # fmt: skip
    sets = {}
    for scheme, data in made.items():
        found = measure(data, reference=made["replay"], random_return=worst, expert_return=best, seed=seed)
        sets[scheme] = {"tq": found.tq, "saco": found.saco, "mean_return": found.returns.mean}
    return {"random_return": worst, "expert_return": best, "online": list(online), "sets": sets}


def train(shared: tuple[Path, Settings, Mapping[str, Any]], name: str, scheme: str, seed: int) -> dict[str, Any]:
    """In a worker: trains one method on one data set, from its checkpoint if it has one."""
    folder, settings, options = shared
    run, data = run_place(folder, name, scheme, seed), sets_place(folder, seed) / f"{scheme}.npz"
    explore = options[name]["use"] in SAMPLED
    try:
        use_options(options[name]).fit(
            data, steps=settings.steps, seed=seed, device=settings.device, out=run,
            resume=(run / "run.json").is_file(), **scored(settings, settings.steps, explore),
        )  # fmt: skip
    except TelosError as error:
        return {"error": str(error)}
    value = {"returns": returns(run)}
    write_json(run.with_suffix(".json"), value)
    return value


def judged(
    env: str, methods: Sequence[str], sets: Mapping[int, dict[str, Any]],
    found: Mapping[tuple[str, str, int], dict[str, Any]], folder: Path,
) -> Study:  # fmt: skip
    """The study's table.

    Raises:
        TelosError: no run finished.
    """
    errors: dict[str, str] = {}
    for (name, scheme, seed), value in found.items():
        if "error" in value:
            errors.setdefault(name, f"on {scheme}, seed {seed}: {value['error']}")
    if all("error" in value for value in found.values()):
        raise TelosError("no method finished", got="; ".join(errors.values()))
    points = []
    for seed, made in sorted(sets.items()):
        low, gap = made["random_return"], made["expert_return"] - made["random_return"]
        for scheme in SCHEMES:
            curves = {name: found[name, scheme, seed].get("returns") for name in methods}
            best = {name: (max(curve) - low) / gap if curve else None for name, curve in curves.items()}
            last = {name: (curve[-1] - low) / gap if curve else None for name, curve in curves.items()}
            points.append(Point(scheme, seed, made["sets"][scheme]["tq"], made["sets"][scheme]["saco"], best, last))
    correlations = tuple(
        Correlation(name, omega, measured, *pearson(points, name, omega, measured))
        for name in methods for omega in ("best", "last") for measured in MEASURES
    )  # fmt: skip
    return Study(env, tuple(points), correlations, errors, folder)


def pearson(points: Sequence[Point], name: str, omega: str, measured: str) -> tuple[float | None, float | None]:
    """r and p of a method's omega with a measure; see `Correlation`."""
    omegas = [(getattr(point, omega)[name], getattr(point, measured)) for point in points]
    known = np.array([pair for pair in omegas if pair[0] is not None]).reshape(-1, 2)
    if len(known) < 3 or np.ptp(known, axis=0).min() < 1e-9:
        return None, None
    found: Any = stats.pearsonr(known[:, 0], known[:, 1])
    return float(found.statistic), float(found.pvalue)


def draw(result: Study, path: Path) -> None:
    """The plane of TQ and SACo, a panel a method: each data set coloured by its omega; nothing without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    methods = list(result.points[0].best)
    columns = min(len(methods), 3)
    rows = -(-len(methods) // columns)
    with figure(path, width=1.2 + 2.8 * columns, height=0.7 + 2.6 * rows, rows=rows, columns=columns) as (drawn, axes):
        shown: Any = None
        for ax, name in zip(axes.flat, methods):
            for marker, scheme in zip(MARKERS, SCHEMES):
                points = [one for one in result.points if one.scheme == scheme and one.best[name] is not None]
                shown = ax.scatter(
                    [one.tq for one in points], [one.saco for one in points], c=[one.best[name] for one in points],
                    cmap="RdYlBu", vmin=0, vmax=1, s=36, marker=marker, edgecolors="#404040", linewidths=0.5,
                    label=scheme,
                )  # fmt: skip
            r = {one.measure: one.r for one in result.correlations if (one.method, one.omega) == (name, "best")}
            texts = [f"{MEASURES[key]} {'-' if value is None else f'{value:.2f}'}" for key, value in r.items()]
            ax.set_title(f"{name}\nr: {', '.join(texts)}")
            ax.set_xlabel("quality TQ")
        for ax in axes.flat[len(methods) :]:
            ax.set_axis_off()
        for ax in axes[:, 0]:
            ax.set_ylabel("coverage SACo")
        drawn.colorbar(shown, ax=axes, label="omega (best evaluation)")
        drawn.suptitle(result.env, x=0.01, ha="left", fontsize=9)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower left", ncols=len(SCHEMES), fontsize=8)
