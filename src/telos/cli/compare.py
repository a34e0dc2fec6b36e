"""telos compare: several methods on the user's own data, same budget and seeds, one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from telos.cli.common import Parser, number, positive, print_json
from telos.core.errors import TelosError

GIVEN = ("model", "reference", "purpose", "critic", "expert", "lora")


def run(argv: Sequence[str]) -> None:
    parser = Parser(
        "compare",
        "Trains several methods on your data with the same number of updates and seeds, and judges their products:\n"
        "in --env, or by records that were held out (off-policy evaluation of transitions and logged decisions,\n"
        "accuracy on preference pairs). The same command with the same --out goes on after a kill.",
    )
    parser.add_argument("--data", required=True, metavar="D", help="what to learn from, as for `telos fit`")
    parser.add_argument("--methods", required=True, metavar="A,B,..", help="methods, or names of --options, by commas")
    parser.add_argument("--steps", required=True, type=positive, metavar="N", help="updates of each method")
    parser.add_argument("--env", metavar="E", help="a registered Gymnasium environment that judges")
    parser.add_argument(
        "--goal", metavar="NAME", help="the part of Dict observations that is the goal (desired_goal); of records the "
        "columns that hold it (2,3)",
    )  # fmt: skip
    parser.add_argument("--episodes", type=positive, default=20, metavar="N", help="of each product (default: 20)")
    parser.add_argument("--seeds", type=positive, default=5, metavar="N", help="0 .. N-1 (default: 5)")
    parser.add_argument("--held-out", type=float, default=0.25, metavar="P", help="share that judges (default: 0.25)")
    parser.add_argument("--discount", type=float, default=0.99, metavar="G", help="off-policy (default: 0.99)")
    parser.add_argument("--options", metavar="FILE", help='JSON: {"name": {"use": "iql", "expectile": 0.9}, ...}')
    for name in GIVEN[:-1]:
        parser.add_argument(f"--{name}", metavar="TEXT", help=f"as for `telos fit`, to methods that take a {name}")
    parser.add_argument("--lora", type=positive, metavar="N", help="as for `telos fit`")
    parser.add_argument("--out", metavar="DIR", help="the comparison's folder (default: runs/compare-1, -2, ...)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, ...")
    parser.add_argument("--jobs", type=positive, metavar="N", help="processes (default: one a core; one on a GPU)")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    options = parser.read(argv)
    import sys

    from telos.cli.fit import next_folder
    from telos.judge.compare import compare

    out = Path(options.out) if options.out else next_folder("compare")
    methods = chosen(options.methods, options.options)
    given = {name: value for name in GIVEN if (value := getattr(options, name)) is not None}
    try:
        table = compare(
            options.data, methods, steps=options.steps, seeds=options.seeds, env=options.env, goal=options.goal,
            episodes=options.episodes, held_out=options.held_out, discount=options.discount, out=out,
            device=options.device, jobs=options.jobs, said=lambda text: print(text, file=sys.stderr, flush=True),
            **given,
        )  # fmt: skip
    except KeyboardInterrupt:
        if (out / "comparison.json").is_file():
            print(f"\nthe same command with --out {out} goes on", end="", file=sys.stderr)
        raise
    if options.json:
        print_json({"folder": str(out), **table.to_json()})
    else:
        show(table)


def chosen(text: str, file: str | None) -> dict[str, Any]:
    """Name -> method: a name of the options file, or a method by its slug with its defaults."""
    from telos.judge.compare import use_options

    return {name: use_options({"use": name, **own}) for name, own in named_options(text, file).items()}


def named_options(text: str, file: str | None, besides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Name -> its options in the file, for the names in `text`, and for those of `besides` that the file has."""
    from telos.core.files import read_json

    own = read_json(Path(file)) if file is not None else {}
    if not isinstance(own, dict) or not all(isinstance(value, dict) for value in own.values()):
        raise TelosError(f"{file} holds no options", expected='a JSON object: {"name": {"use": "iql", ...}, ...}')
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(set(names)) < len(names):
        raise TelosError("a method is named twice", got=text, fix="give variants names in --options")
    unread = sorted(set(own) - {*names, *besides})
    if unread:
        raise TelosError(f"{file} has options for '{unread[0]}'", expected=text, fix="name it in --methods, too")
    return {name: own.get(name, {}) for name in [*names, *(name for name in besides if name in own)]}


def show(comparison: Any) -> None:
    """The table, the warnings, and how far the ranking can be trusted."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("method", comparison.metric, "95 % interval", "behind the first", "s a seed"):
        table.add_column(column, justify="left")
    for line in comparison.rows:
        table.add_row(*cells(line))
    if comparison.control is not None:
        table.add_row(*cells(comparison.control), style="dim")
    console.print(table, markup=False)
    for line in comparison.rows:
        for warning in line.warnings:
            console.print(f"{line.name}: {warning}", markup=False)
    for sentence in comparison.trust:
        console.print(sentence, markup=False)
    console.print(
        f"{comparison.folder}/best holds {comparison.rows[0].name}, the seed that did best: expect its mean above",
        markup=False,
    )


def cells(line: Any) -> list[str]:
    """A row of the table as texts."""
    if line.error:
        return [line.name, "failed", line.error.splitlines()[0], "", ""]
    return [
        line.name, number(line.mean), bounds(line.interval),
        "" if line.behind is None else f"{number(line.behind.estimate)} {bounds(line.behind)}",
        number(sum(line.seconds) / len(line.seconds)),
    ]  # fmt: skip


def bounds(interval: Any) -> str:
    """An interval in brackets, or nothing."""
    return "" if interval is None else f"[{number(interval.low)}, {number(interval.high)}]"
