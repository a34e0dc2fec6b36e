"""telos data study: which methods do well on which kind of data of an environment."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from telos.cli.common import Parser, positive, print_json

STUDY = """Makes five data sets a seed (random, expert, mixed, noisy, replay) with a DQN that learns in the environment,
measures quality TQ and coverage SACo, trains each method on each set and correlates their scores omega with both
measures: 0 is the random data's mean return, 1 the online learner's best evaluation. The same command with the same
--out goes on after a kill."""


def run(argv: Sequence[str]) -> None:
    parser = Parser("data study", STUDY)
    parser.add_argument("--env", required=True, metavar="ENV", help="a Gymnasium environment with discrete actions")
    parser.add_argument("--methods", required=True, metavar="A,B,..", help="bc,bve,bve.mce,dqn,qr_dqn,rem,bcq,cql,crr, "
                        "or names of --options")  # fmt: skip
    parser.add_argument("--steps", required=True, type=positive, metavar="N", help="updates of each method on each set")
    parser.add_argument(
        "--transitions", required=True, type=positive, metavar="M", help="of each set, and online steps"
    )
    parser.add_argument("--seeds", type=positive, default=2, metavar="N", help="0 .. N-1 (default: 2)")
    parser.add_argument("--discount", type=float, default=0.99, metavar="G", help="of all learners (default: 0.99)")
    parser.add_argument("--evaluations", type=positive, default=20, metavar="N", help="of each run (default: 20)")
    parser.add_argument("--episodes", type=positive, default=10, metavar="N", help="of an evaluation (default: 10)")
    parser.add_argument("--options", metavar="FILE", help='JSON: {"cql": {"alpha": 1}, "online": {"hidden": [64]}}, '
                        'where "online" is the learner that makes the data')  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="the study's folder (default: runs/study-1, -2, ...)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, ...")
    parser.add_argument("--jobs", type=positive, metavar="N", help="processes (default: one a core; one on a GPU)")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    options = parser.read(argv)
    from telos.cli.compare import named_options
    from telos.cli.fit import next_folder
    from telos.judge.study import study

    own = named_options(options.methods, options.options, besides=("online",))
    out = Path(options.out) if options.out else next_folder("study")
    try:
        table = study(
            options.env, {name: value for name, value in own.items() if name != "online"}, steps=options.steps,
            transitions=options.transitions, seeds=options.seeds, discount=options.discount,
            online=own.get("online"), evaluations=options.evaluations, episodes=options.episodes, out=out,
            device=options.device, jobs=options.jobs, said=lambda text: print(text, file=sys.stderr, flush=True),
        )  # fmt: skip
    except KeyboardInterrupt:
        if (out / "study.json").is_file():
            print(f"\nthe same command with --out {out} goes on", end="", file=sys.stderr)
        raise
    if options.json:
        print_json({"folder": str(out), **table.to_json()})
    else:
        show(table)


def show(study: Any) -> None:
    """The data sets with their scores, the correlations, and what failed."""
    from rich.console import Console

    methods = list(study.points[0].best)
    # Wide enough for all methods: a terminal may break lines, numbers are not to be broken.
    console = Console(highlight=False, width=max(Console().width, 30 + sum(max(5, len(name)) + 2 for name in methods)))
    for omega, words in (("best", "best evaluation, an oracle's choice"), ("last", "last evaluation")):
        console.print(f"omega, {words}", markup=False)
        console.print(scores(study, omega), markup=False)
        console.print()
    rows = [(name, *(correlation(one) for one in study.correlations if one.method == name)) for name in methods]
    console.print(f"Pearson's r over {len(study.points)} data sets, and its p", markup=False)
    console.print(table(("method", "best: TQ", "best: SACo", "last: TQ", "last: SACo"), rows), markup=False)
    console.print("p takes all data sets as independent, though a seed's five share an online learner.", markup=False)
    for name, error in study.errors.items():
        console.print(f"{name} failed {error}", markup=False)
    console.print(f"{study.folder} holds the data sets, the runs, study.json and figure.png", markup=False)


def scores(study: Any, omega: str) -> Any:
    """A row a data set, a column a method."""
    rows = []
    for point in study.points:
        values = getattr(point, omega)
        numbers = [decimals(value) for value in (point.tq, point.saco, *values.values())]
        rows.append((point.scheme, str(point.seed), *numbers))
    return table(("scheme", "seed", "TQ", "SACo", *study.points[0].best), rows)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    """Texts in columns."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    for column in columns:
        made.add_column(column)
    for row in rows:
        made.add_row(*row)
    return made


def correlation(one: Any) -> str:
    """r and p as text."""
    return "-" if one.r is None else f"{decimals(one.r)} ({one.p:.2g})"


def decimals(value: float | None) -> str:
    """Two decimals; a dash for what is not known."""
    return "-" if value is None else f"{value:.2f}"
