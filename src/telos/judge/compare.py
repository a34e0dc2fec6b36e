"""Several methods on the user's own data: same records, updates and seeds, one table, one picture, the best product.

What judges depends on what there is: whole episodes of an environment; else records that no method was trained on, a
part drawn for each seed: off-policy evaluation of transitions and logged decisions, accuracy on preference pairs. The
seed is the unit of all intervals. A comparison is a folder; the same call goes on with it after a kill:

    comparison.json     settings and, once it is done, the table
    runs/NAME/seed-S/   one call of `fit`        runs/NAME/seed-S.json   how its product was judged
    figure.png, best/   the picture; of the method with the highest mean the product that did best
"""

from __future__ import annotations

import copy
import importlib.util
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from telos.core.errors import TelosError
from telos.core.files import read_json, write_json
from telos.core.method import Method
from telos.core.products import Policy, Product, Scorer, load_product
from telos.core.registry import class_slug, method_class, use
from telos.core.rng import Rng
from telos.data.records import LoggedBandit, Preferences, Transitions
from telos.data.splits import hold_out
from telos.judge.off_policy import OffPolicy, first_rows, goal_in, off_policy
from telos.judge.plots import PALETTE, figure
from telos.judge.run import default_jobs, run_in_workers
from telos.judge.stats import Interval, paired_t

CLONE = "the logging policy, cloned"
"""Of transitions without an environment: a control whose value is known from the records themselves."""
CHOICE = ("fitted q", "doubly robust", "direct")
"""The estimator that ranks: the first of these that there is."""
EVALUATION_SEED = 10_000


@dataclass(frozen=True)
class Settings:
    """What all methods share; see `compare`."""

    steps: int
    seeds: int
    env: str | None
    goal: str | None
    episodes: int
    held_out: float
    discount: float
    device: str
    given: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One method's line of the table.

    Args:
        scores: one a seed; seconds: of training, a seed.
        interval: Student's t, 95 %; None for a single seed.
        behind: score of the leader minus this one's, paired by seed; None for the leader and for a single seed.
        warnings: of off-policy evaluation, each once.
        error: why the method did not finish; then the rest is empty.
    """

    name: str
    scores: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    interval: Interval | None = None
    behind: Interval | None = None
    warnings: tuple[str, ...] = ()
    error: str = ""

    @property
    def mean(self) -> float:
        """The mean score over seeds."""
        return float(np.mean(self.scores)) if self.scores else float("nan")


@dataclass(frozen=True)
class Comparison:
    """The table of a comparison, best method first, failed ones last.

    Args:
        metric: what a score is.
        trust: how far the ranking can be trusted, in sentences.
        control: the clone's row, where there is one.
        folder: where everything is; `best` loads the saved product.
    """

    metric: str
    rows: tuple[Row, ...]
    trust: tuple[str, ...]
    control: Row | None
    folder: Path

    def best(self, device: str = "cpu") -> Any:
        """The product in the folder best/."""
        return load_product(self.folder / "best", device)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON."""
        lines = [*self.rows, *([self.control] if self.control is not None else [])]
        return {
            "metric": self.metric,
            "rows": [{**asdict(row), "mean": row.mean if row.scores else None} for row in lines],
            "trust": list(self.trust),
        }


def compare(
    data: Any, methods: Sequence[str | Method] | Mapping[str, str | Method], *, steps: int, seeds: int = 5,
    env: str | None = None, goal: str | None = None, episodes: int = 20, held_out: float = 0.25,
    discount: float = 0.99, out: str | Path, device: str = "auto", jobs: int | None = None,
    said: Callable[[str], None] = print, **given: Any,
) -> Comparison:  # fmt: skip
    """Trains every method with the same number of updates on seeds 0 .. seeds-1 and judges the last product of each.

    Args:
        data: Transitions, LoggedBandit or Preferences, or what `telos.load` reads.
        methods: slugs (`iql`, `dual_rl.recoil`) or methods; a mapping gives them names of its own.
        env: the environment in whose episodes policies are judged; without it a part of the data is held out.
        goal: passed to `telos.evaluate` in `env`: the part of Dict observations that is the goal. Without `env`: the
            columns of recorded observations that hold the goal, as "2,3".
        episodes: of each product in `env`, the same starts for all.
        held_out: share of episodes, decisions or prompts that judges, drawn anew for each seed.
        discount: of off-policy evaluation.
        out: the comparison's folder; if it holds an unfinished one of the same settings, that goes on.
        jobs: processes of one thread each; by default one a core, and a single one on a GPU.
        said: hears a line whenever a product has been judged.
        given: what methods take besides data (model, reference, ...); each is handed what it takes.

    Raises:
        TelosError: a method for other data or two of one name, options out of range, a folder of something else,
            no method that finished. A method that fails has its error in its row; the others go on.
    """
    if isinstance(data, str | Path):
        data = load_for(methods, str(data))
    named = names(methods, data)
    settings = Settings(steps, seeds, env, goal, episodes, held_out, discount, device, given)
    check(settings, data)
    control = env is None and isinstance(data, Transitions)
    everyone = {**named, **({CLONE: use("bc", kind="gaussian")} if control else {})}
    folder = Path(out)
    wanted = header(settings, named, data)
    open_folder(folder, wanted)
    tasks = [(name, seed) for seed in range(seeds) for name in everyone]
    found: dict[tuple[str, int], dict[str, Any]] = {
        task: read_json(file) for task in tasks if (file := place(folder, *task).with_suffix(".json")).is_file()
    }
    failed: dict[str, str] = {}

    def done(task: tuple[str, int], value: dict[str, Any]) -> None:
        found[task] = value
        if "error" in value:
            failed.setdefault(task[0], value["error"])
        outcome = f"failed: {value['error'].splitlines()[0]}" if "error" in value else f"{value['score']:.4g}"
        said(f"{len(found)}/{len(tasks)}  {task[0]}, seed {task[1]}: {outcome}")

    shared = (folder, plain(data), settings, described(everyone))
    work_off(one, [task for task in tasks if task not in found], done, shared, jobs=jobs, device=device)
    rows = [row(name, found, failed, seeds) for name in named]
    if all(one.error for one in rows):
        raise TelosError("no method finished", got=f"{rows[0].name}: {rows[0].error}")
    ranked = ranking(rows)
    clone = row(CLONE, found, failed, seeds) if control else None
    logged = [found[CLONE, seed] for seed in range(seeds)] if control else []
    result = Comparison(
        metric(settings, data), tuple(ranked), trust(settings, data, ranked, clone, logged), clone, folder
    )
    best = max(range(seeds), key=lambda seed: found[ranked[0].name, seed]["score"])
    load_product(place(folder, ranked[0].name, best) / "product").save(folder / "best")
    write_json(folder / "comparison.json", {**wanted, "table": result.to_json()})
    draw(result, folder / "figure.png")
    return result


def draw(result: Comparison, path: Path) -> None:
    """Each method's seeds as dots beside their mean and interval; nothing without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    lines = [line for line in (*result.rows, *([result.control] if result.control else [])) if line.scores]
    with figure(path, height=1.2 + 0.4 * len(lines)) as (_, axes):
        ax = axes[0, 0]
        for place, line in enumerate(lines):
            colour = PALETTE[-2] if line is result.control else PALETTE[0]
            ax.scatter(line.scores, [place - 0.22] * len(line.scores), s=14, color=colour, alpha=0.45, linewidths=0)
            if line.interval is not None:
                ax.plot([line.interval.low, line.interval.high], [place, place], color=colour, lw=2.4)
            ax.plot(line.mean, place, "o", color=colour, ms=6.5, mec="white")
        ax.set_yticks(range(len(lines)), [line.name for line in lines])
        ax.set_ylim(len(lines) - 0.5, -0.7)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(f"{result.metric}\nmean with 95 % interval over seeds, each seed a dot")


def work_off(
    work: Callable[..., dict[str, Any]], tasks: Sequence[tuple[Any, ...]], done: Callable[[Any, dict[str, Any]], None],
    shared: Any, *, jobs: int | None, device: str,
) -> None:  # fmt: skip
    """Calls work(shared, *task), a module's function, for each task, in as many processes as `compare` says; a single
    job is done in this process, with one thread as in a worker: the same results bit for bit."""
    from telos.core.fit import resolve_device

    jobs = jobs or (1 if resolve_device(device).type == "cuda" else default_jobs())
    if jobs > 1:
        run_in_workers(work, tasks, jobs, done, shared)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for task in tasks:
            done(task, work(shared, *task))
    finally:
        torch.set_num_threads(threads)


def load_for(methods: Any, what: str) -> Any:
    """The record in `what` of the kind that the first method learns from."""
    from telos.data.formats import load

    first = next(iter(methods.values() if isinstance(methods, Mapping) else methods), None)
    first = use(first) if isinstance(first, str) else first
    return load(what) if first is None else load(what, kind=first.data, accepts=first.accepts)


def names(methods: Any, data: Any) -> dict[str, Method]:
    """Name -> method; TelosError unless each learns from `data` and has a name of its own."""
    listed = list(methods.items()) if isinstance(methods, Mapping) else [
        (method if isinstance(method, str) else class_slug(type(method)), method) for method in methods
    ]  # fmt: skip
    found: dict[str, Method] = {}
    for name, method in listed:
        method = use(method) if isinstance(method, str) else method
        if name in found or name == CLONE:
            raise TelosError(f"two methods are called '{name}'", fix="give each a name of its own: {name: method}")
        kinds = tuple(kind for kind in (method.data, *method.accepts) if kind is not None)
        if not isinstance(data, kinds) or not method.trains:
            raise TelosError(
                f"{name} does not learn from {type(data).__name__}",
                expected=" or ".join(kind.__name__ for kind in kinds) or "no data",
                fix="leave it out, or give the data it wants",
            )  # fmt: skip
        found[name] = method
    if not found:
        raise TelosError("there is nothing to compare", expected="two methods or more", fix="--methods iql,td3_bc")
    return found


def check(settings: Settings, data: Any) -> None:
    """TelosError for options that are out of range or do not fit the data."""
    if settings.steps < 1 or settings.seeds < 1 or settings.episodes < 1:
        raise TelosError(
            "compare: an option is out of range", expected="steps, seeds and episodes of at least 1",
            got=f"steps={settings.steps}, seeds={settings.seeds}, episodes={settings.episodes}",
        )  # fmt: skip
    if settings.env is not None and not isinstance(data, Transitions):
        raise TelosError(f"{type(data).__name__} cannot be judged in an environment", fix="leave env out")
    if settings.env is None:
        hold_out(data, settings.held_out, Rng(0))
        if settings.goal is not None and isinstance(data, Transitions):
            goal_in(settings.goal)(data.observations[:1])


def header(settings: Settings, methods: Mapping[str, Method], data: Any) -> dict[str, Any]:
    """What a comparison must agree in to go on."""
    given = {key: str(value) for key, value in settings.given.items()}
    return {"settings": {**asdict(replace(settings, given={})), "given": given}, "methods": described(methods),
            "data": data.origin, "fingerprint": data.fingerprint()}  # fmt: skip


def open_folder(folder: Path, wanted: Mapping[str, Any], kind: str = "comparison") -> None:
    """Starts the folder of a comparison (or study), or checks that it holds one of the same settings."""
    file, wanted = folder / f"{kind}.json", json.loads(json.dumps(wanted))
    if not file.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise TelosError(f"{folder} is not empty", expected=f"a new folder, or a {kind}'s", fix="another --out")
        write_json(file, wanted)
        return
    held = read_json(file)
    for key in ("settings", "methods", "fingerprint"):
        if held.get(key) != wanted.get(key):
            there, here = apart(held.get(key), wanted.get(key))
            raise TelosError(
                f"{folder} holds another {kind}: its {key} differ", expected=str(there), got=str(here),
                fix="give the same options to go on with it, or another --out",
            )  # fmt: skip


def apart(a: Any, b: Any) -> tuple[Any, Any]:
    """What differs between two values; of dicts, only where they do."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return a, b
    found = {key: apart(a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}
    return {key: one for key, (one, _) in found.items()}, {key: other for key, (_, other) in found.items()}


def place(folder: Path, name: str, seed: int) -> Path:
    """The folder of one run."""
    return folder / "runs" / name.replace("/", "-").replace(" ", "-") / f"seed-{seed}"


def plain(data: Any) -> Any:
    """The record with arrays in place of tensors, to be handed to another process, or back."""
    if not is_dataclass(data):
        return data
    values = {f.name: getattr(data, f.name) for f in fields(data)}
    there = {name: value.cpu().numpy() for name, value in values.items() if isinstance(value, torch.Tensor)}
    back = {name: torch.from_numpy(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    result = copy.copy(data)
    for name, value in (there or back).items():
        object.__setattr__(result, name, value)
    return result


def one(shared: tuple[Path, Any, Settings, Mapping[str, Any]], name: str, seed: int) -> dict[str, Any]:
    """In a worker: trains one method on one seed, from its checkpoint if it has one, and judges the product."""
    folder, data, settings, options = shared
    out = place(folder, name, seed)
    method = use_options(options[name])
    record = plain(data)
    kept, aside = (record, None) if settings.env is not None else hold_out(
        record, settings.held_out, Rng(seed).at("held out")
    )  # fmt: skip
    given = {key: value for key, value in settings.given.items() if key in method.takes}
    begun = time.monotonic()
    try:
        product = method.fit(
            kept, steps=settings.steps, seed=seed, device=settings.device, out=out,
            resume=(out / "run.json").is_file(), **given,
        )  # fmt: skip
        seconds = round(time.monotonic() - begun, 3)
        value = {**judge(product, aside, settings, name == CLONE), "seconds": seconds}
    except TelosError as error:
        return {"error": str(error)}
    write_json(out.with_suffix(".json"), value)
    return value


def described(methods: Mapping[str, Method]) -> dict[str, dict[str, Any]]:
    """Each method as {"use": slug, ...}, its options as JSON."""
    return {name: {"use": class_slug(type(method)), **method.options()} for name, method in methods.items()}


def use_options(options: Mapping[str, Any]) -> Method:
    """The inverse of `described` for one method."""
    rest = dict(options)
    return method_class(str(rest.pop("use"))).from_options(rest)


def judge(product: Product, aside: Any, settings: Settings, clone: bool) -> dict[str, Any]:
    """A product's score, and what there is to say of it."""
    if settings.env is not None:
        from telos.judge.evaluate import evaluate

        goal: Any = {} if settings.goal is None else {"goal": settings.goal}
        assert isinstance(product, Policy)
        found = evaluate(product, settings.env, episodes=settings.episodes, seed=EVALUATION_SEED, **goal)
        return {"score": found.mean, "success_rate": found.success_rate, "warnings": []}
    if isinstance(aside, Preferences):
        return {"score": accuracy(product, aside, settings.given), "warnings": []}
    assert isinstance(product, Policy)
    # The clone is judged as it was logged, with its chance; the others as they will act.
    goal = None if settings.goal is None else goal_in(settings.goal)
    report = off_policy(product, aside, goal=goal, discount=settings.discount, greedy=not clone)
    chosen = next((name for name in CHOICE if name in report.estimates), None)
    if chosen is None:
        raise TelosError("off-policy evaluation found no estimate", got="; ".join(report.skipped.values()))
    return {
        "score": report.estimates[chosen].value, "estimator": chosen, "estimates": report.to_json(),
        "logged": logged(report), "cut": cut(aside, settings.discount), "warnings": list(report.warnings),
    }  # fmt: skip


def logged(report: OffPolicy) -> dict[str, float]:
    """What the held-out records did earn."""
    interval = report.logged.interval
    bounds = {} if interval is None else {"low": interval.low, "high": interval.high}
    return {"value": report.logged.value, **bounds}


def cut(aside: Any, discount: float) -> float:
    """Mean discount of what comes after the ends of held-out episodes that time limits cut; 0 for decisions."""
    if not isinstance(aside, Transitions):
        return 0.0
    first = first_rows(aside.to("cpu"))
    lengths = torch.diff(first, append=torch.tensor([len(aside)]))
    goes_on = ~aside.terminated.cpu()[first + lengths - 1]
    return float((discount ** lengths.double() * goes_on).mean())


def accuracy(product: Any, pairs: Preferences, given: Mapping[str, Any]) -> float:
    """The share of pairs whose chosen text a reward model scores higher, or a policy made more likely by more than the
    rejected one, compared with the model that it started from; ties count one half."""
    if isinstance(product, Scorer):
        prompts = list(pairs.prompts)
        margins = product.score(prompts, list(pairs.chosen)) - product.score(prompts, list(pairs.rejected))
        return float(((margins.sign() + 1) / 2).mean())
    from telos.lm.log_probs import reference_log_probs
    from telos.lm.model import load_model
    from telos.lm.tokens import tokenise

    model = getattr(product, "model", None)
    if model is None:
        raise TelosError(f"a {type(product).__name__} does not rank texts", expected="a language or a reward model")
    reference = given.get("reference", given["model"])
    # A boundary inside a token is the completion's, for the reference as for the policy.
    groups = tokenise(model, pairs, overlong="truncate", boundary="inside", device=model.device)
    gains = reference_log_probs(model, groups) - reference_log_probs(load_model(reference, model.device), groups)
    return float((((gains[:, 0] - gains[:, 1]).sign() + 1) / 2).mean())


def row(name: str, found: Mapping[tuple[str, int], dict[str, Any]], failed: Mapping[str, str], seeds: int) -> Row:
    """A method's line, without its distance to the leader."""
    if name in failed:
        return Row(name, error=failed[name])
    values = [found[name, seed] for seed in range(seeds)]
    scores = tuple(value["score"] for value in values)
    heard = tuple(dict.fromkeys(text for value in values for text in value["warnings"]))
    return Row(
        name, scores, tuple(value["seconds"] for value in values), paired_t(scores) if seeds > 1 else None,
        warnings=heard,
    )  # fmt: skip


def ranking(rows: Sequence[Row]) -> list[Row]:
    """Best mean first, with each one's distance to it; failed ones last."""
    whole = sorted((line for line in rows if not line.error), key=lambda line: -line.mean)
    leader = np.array(whole[0].scores)
    for index, line in enumerate(whole[1:], 1):
        if len(leader) > 1:
            whole[index] = replace(line, behind=paired_t(leader - np.array(line.scores)))
    return [*whole, *(line for line in rows if line.error)]


def metric(settings: Settings, data: Any) -> str:
    """What a score is, in words."""
    if settings.env is not None:
        return f"mean return of {settings.episodes} episodes of {settings.env}"
    if isinstance(data, Preferences):
        return "accuracy on held-out pairs"
    if isinstance(data, LoggedBandit):
        return "estimated mean reward of a decision, on the held-out last ones"
    return f"estimated return of a held-out episode, discount {settings.discount:g}"


def trust(
    settings: Settings, data: Any, rows: Sequence[Row], clone: Row | None, logged: Sequence[Any]
) -> tuple[str, ...]:
    """What the ranking rests on, and what speaks against it."""
    said = []
    whole = [line for line in rows if not line.error]
    if settings.seeds < 5:
        said.append(f"{settings.seeds} seeds: an indication; 5 or more say whether methods differ.")
    close = [line.name for line in whole if line.behind is not None and line.behind.low <= 0]
    if close:
        said.append(f"Not told apart from {whole[0].name} by these seeds (95 %, paired): {', '.join(close)}.")
    if settings.env is not None:
        return tuple(said)
    if isinstance(data, Preferences):
        said.append(
            "Accuracy says how well a method tells the chosen texts from the rejected ones, not how well its model "
            "writes: judge samples before you choose."
        )
        return tuple(said)
    said.append("Nobody acted: scores are estimates from records of other actions. An environment or a trial decides.")
    if clone is not None:
        said.append(calibration(clone, logged))
    warned = [line.name for line in whole if line.warnings]
    if warned:
        said.append(f"The records do not support what these do (see their warnings): {', '.join(warned)}.")
    return tuple(said)


def calibration(clone: Row, judged: Sequence[Mapping[str, Any]]) -> str:
    """The estimator on a policy whose value the held-out episodes show, up to what comes after time limits.

    Args:
        judged: what `judge` found of the clone on each seed.
    """
    if clone.error:
        return f"The estimator could not be checked on a clone of the logging policy: {clone.error}"
    earned = np.array([value["logged"]["value"] for value in judged])
    # The estimator goes on after a time limit. If what comes then is like what came before, this is earned in all.
    whole = earned / (1 - np.array([value["cut"] for value in judged]))
    text = f"Checked on a clone of the logging policy: estimated {clone.mean:.4g}, earned {earned.mean():.4g}"
    if not np.allclose(whole, earned, rtol=1e-3):
        text += f" (about {whole.mean():.4g} with what comes after time limits)"
    if len(earned) < 2:
        return f"{text}."
    errors = [paired_t(np.array(clone.scores) - value) for value in (earned, whole)]
    if min(error.low for error in errors) <= 0 <= max(error.high for error in errors):
        return f"{text}: no bias is seen there."
    error = min(errors, key=lambda one: abs(one.estimate))
    spread = f"off by {error.estimate:.3g} [{error.low:.3g}, {error.high:.3g}]"
    return f"{text}: {spread}; differences of that size mean nothing."
