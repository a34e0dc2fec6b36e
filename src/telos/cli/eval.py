"""telos eval: a product in an environment, on a log of another policy's actions, or on preference data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from telos.cli.common import Parser, number, positive, print_json
from telos.core.errors import TelosError


def run(argv: Sequence[str]) -> None:
    parser = Parser(
        "eval",
        "A policy: the mean return of whole episodes of --env, or what it would earn by a log of another policy's\n"
        "actions, --data (off-policy evaluation). A language model: the log-probs of chosen and rejected texts of\n"
        "--data. A reward model: how often it prefers the chosen text of --data.",
    )
    parser.add_argument("run", metavar="RUN", help="a run, or a saved product")
    parser.add_argument("--env", metavar="E", help="a registered Gymnasium environment")
    parser.add_argument("--episodes", type=positive, default=10, metavar="N", help="whole episodes (default: 10)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the episodes (default: 0)")
    parser.add_argument(
        "--goal", metavar="NAME", help="the part of Dict observations that is the goal (desired_goal); of records the "
        "columns that hold it (2,3)",
    )  # fmt: skip
    parser.add_argument("--processes", action="store_true", help="one process a core, for slow environments")
    parser.add_argument("--data", metavar="D", help="preference pairs, or for a policy logged decisions or transitions")
    parser.add_argument("--discount", type=float, default=0.99, metavar="G", help="of logged episodes (default: 0.99)")
    parser.add_argument("--clip", type=float, metavar="W", help="the most that an importance weight counts for")
    parser.add_argument("--greedy", action="store_true", help="on a log: the policy's most probable action only")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, ...")
    parser.add_argument("--json", action="store_true", help="the numbers as JSON")
    options = parser.read(argv)
    folder = Path(options.run)
    if (folder / "run.json").is_file() and not (folder / "product").is_dir():
        raise TelosError(f"{folder} has no product yet", fix=f"telos resume {folder}")
    from telos.core.fit import resolve_device
    from telos.core.products import Policy, load_product

    product = load_product(folder, resolve_device(options.device))
    acts = isinstance(product, Policy)
    env, data = options.env if acts else None, options.data
    if env is None and data is None:
        wanted = "--env, or --data for a log of another policy's actions" if acts else "--data"
        raise TelosError(f"a {type(product).__name__} is measured with {wanted}", fix="add it")
    if env is not None and data is not None:
        raise TelosError("telos eval: --env and --data measure a policy in two ways", fix="give one of them")
    if acts and data is not None:
        on_log(product, data, options)
        return
    if env is not None:
        from telos.judge.evaluate import evaluate

        values = evaluate(
            product, env, episodes=options.episodes, seed=options.seed, goal=options.goal, processes=options.processes
        ).to_json()
    else:
        values = on_pairs(product, str(data))
    if options.json:
        print_json(values)
    else:
        show(values)


TABLES = (".csv", ".csv.gz", ".parquet")
"""What holds logged decisions, or for policies of sessions their steps; other transitions are in other files."""


def on_log(policy: Any, what: str, options: Any) -> None:
    """Off-policy evaluation: the warnings first, then a line for each estimator."""
    from telos.data.formats import load
    from telos.data.records import LoggedBandit, Transitions
    from telos.judge.off_policy import goal_in, off_policy

    path, _, query = what.partition("?")
    table = path.endswith((*TABLES, ".jsonl", ".jsonl.gz"))
    bandit = path.endswith(TABLES) and not hasattr(policy, "observation_names")
    # The columns and actions that the policy knows, in its order, unless the user says otherwise.
    seen = getattr(policy, "context_names" if bandit else "observation_names", ())
    own = {"context": seen, "actions": getattr(policy, "action_names", ())}
    names: dict[str, Any] = {
        name: ",".join(value) for name, value in own.items() if table and value and f"{name}=" not in query
    }
    log: Any = load(what, kind=LoggedBandit if bandit else Transitions, **names)
    report = off_policy(
        policy, log, goal=None if options.goal is None else goal_in(options.goal), discount=options.discount,
        clip=options.clip, greedy=options.greedy, seed=options.seed,
    )  # fmt: skip
    if options.json:
        print_json({"data": log.origin, **report.to_json()})
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for warning in report.warnings:
        console.print(f"warning: {warning}", markup=False)
    table = Table(box=None, pad_edge=False)
    for column in ("estimator", "value", "95 % interval", "effective n", ""):
        table.add_column(column, justify="left")
    for name, estimate in (("as logged", report.logged), *report.estimates.items()):
        low_high = estimate.interval and f"[{number(estimate.interval.low)}, {number(estimate.interval.high)}]"
        size = "" if estimate.ess is None else number(estimate.ess)
        table.add_row(name, number(estimate.value), low_high or "", size, estimate.note)
    for name, reason in report.skipped.items():
        table.add_row(name, "-", "", "", reason)
    console.print(table, markup=False)
    per = "mean reward of a decision" if bandit else f"return of an episode, discount {number(report.discount or 1)}"
    clipped = f", {report.support['clipped']:.1%} of weights clipped" if "clipped" in report.support else ""
    console.print(f"{report.count} {report.unit}: {per}{clipped}", markup=False)


def on_pairs(product: Any, what: str) -> dict[str, Any]:
    """How a language model or a reward model ranks preference pairs; intervals are 95 %, pairs the unit."""
    from telos.core.products import Scorer
    from telos.data.formats import load
    from telos.data.records import Preferences

    pairs = load(what, kind=Preferences)
    assert isinstance(pairs, Preferences)
    if isinstance(product, Scorer):
        return on_scores(product, pairs)
    model = getattr(product, "model", None)
    if model is None:
        raise TelosError(
            f"a {type(product).__name__} has no log-probs to measure", expected="a language model or a reward model"
        )
    from telos.lm.log_probs import reference_log_probs
    from telos.lm.tokens import tokenise

    groups = tokenise(model, pairs, overlong="truncate", device=model.device)
    each = reference_log_probs(model, groups, average=True)
    whole = reference_log_probs(model, groups)
    return {
        "pairs": len(groups),
        "chosen log-prob a token": estimate(each[:, 0].tolist()),
        "rejected log-prob a token": estimate(each[:, 1].tolist()),
        "chosen more likely": share(whole[:, 0] > whole[:, 1]),
        "notes": str(groups.report),
    }


def on_scores(scorer: Any, pairs: Any) -> dict[str, Any]:
    """Accuracy (ties are errors) and margin of a reward model."""
    chosen = scorer.score(pairs.prompts, pairs.chosen)
    rejected = scorer.score(pairs.prompts, pairs.rejected)
    return {
        "pairs": len(pairs),
        "accuracy": share(chosen > rejected),
        "margin": estimate((chosen - rejected).tolist()),
    }


def share(hits: Any) -> dict[str, float]:
    """The fraction of True with its exact interval."""
    from telos.judge.stats import binary_mean

    return binary_mean(hits.cpu().numpy().astype(float)).to_json()


def estimate(values: list[float]) -> dict[str, float]:
    """The mean with Student's t interval; the mean alone for a single value."""
    from telos.judge.stats import paired_t

    if len(values) == 1:
        return {"estimate": values[0]}
    return paired_t(values).to_json()


def show(values: dict[str, Any]) -> None:
    """The numbers as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in rows(values):
        table.add_row(name, value)
    Console(highlight=False).print(table, markup=False)


def rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, text) of each number."""
    if "env" not in values:
        return [(name, text(value)) for name, value in values.items()]
    found = [
        ("environment", values["env"]),
        ("episodes", str(values["episodes"])),
        ("mean return", text(values["interval"] or values["mean"])),
        ("mean length", number(sum(values["lengths"]) / len(values["lengths"]))),
    ]
    return found if values["success_rate"] is None else [*found, ("success", f"{values['success_rate']:.1%}")]


def text(value: Any) -> str:
    """A number with its interval where it has one."""
    if isinstance(value, dict):
        low_high = f" [{number(value['low'])}, {number(value['high'])}]" if "low" in value else ""
        return number(value["estimate"]) + low_high
    return number(value) if isinstance(value, float) else str(value)
