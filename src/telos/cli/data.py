"""telos data measure: what a data set of transitions holds; telos data study stands in data_study."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from telos.cli import data_study
from telos.cli.common import Parser, number, positive, print_json
from telos.core.errors import TelosError

MEASURE = """How good the episodes of a data set are, and how much of states and actions it covers: lengths, ends,
returns, trajectory quality TQ, unique (state, action) pairs and their share of a reference's (SACo), actions,
duplicates."""


USAGE = f"""usage: telos data measure DATA [options]
       telos data study --env ENV --methods A,B,.. --steps N --transitions M [options]

measure: {MEASURE}

study: {data_study.STUDY}

telos data ACTION --help shows the options."""


def run(argv: Sequence[str]) -> None:
    actions = {"measure": run_measure, "study": data_study.run}
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
    elif argv[0] in actions:
        actions[argv[0]](argv[1:])
    else:
        raise TelosError(
            f"telos data: no such action '{argv[0]}'", expected=" or ".join(actions), fix="telos data measure DATA"
        )


def run_measure(argv: Sequence[str]) -> None:
    parser = Parser("data measure", MEASURE)
    parser.add_argument("data", metavar="DATA", help="transitions: .npz, .hdf5, minari:ID, gym:ENV, sessions, ...")
    parser.add_argument(
        "--reference", metavar="REF", help="data that coverage is compared with, as an online learner's"
    )
    parser.add_argument("--random", metavar="R", help="mean return of a random policy, or data recorded by one")
    parser.add_argument("--expert", metavar="E", help="mean return of an expert, or data recorded by one")
    parser.add_argument("--discount", type=float, default=1.0, metavar="G", help="of returns (default: 1)")
    parser.add_argument("--bins", type=positive, default=100, metavar="N", help="a continuous dimension (default: 100)")
    parser.add_argument("--counter", choices=("exact", "hashed"), default="exact", help="hashed: constant memory")
    parser.add_argument(
        "--any-size", action="store_true", help="compare with the reference without drawing equal sizes"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the draw of equal sizes (default: 0)")
    parser.add_argument("--plot", metavar="FILE.png", help="draw returns, lengths, actions, TQ and SACo")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="all numbers as JSON, to FILE or instead")
    measured(parser.read(argv))


def measured(options: argparse.Namespace) -> None:
    """Loads, measures, writes the files and prints the table."""
    if options.plot is not None and not options.plot.endswith(".png"):
        raise TelosError(
            f"--plot {options.plot}", expected="a name that ends in .png", fix=f"--plot {options.plot}.png"
        )
    from telos.data.measures import check_options, measure

    check_options(options.discount, options.bins, options.counter)
    data = transitions(options.data)
    found = measure(
        data, discount=options.discount, bins=options.bins, counter=options.counter, seed=options.seed,
        reference=None if options.reference is None else transitions(options.reference),
        random_return=end("--random", options.random, options.discount),
        expert_return=end("--expert", options.expert, options.discount), equal_size=not options.any_size,
    )  # fmt: skip
    if options.plot is not None:
        from telos.data.extras import extra

        with extra("plots", "--plot"):
            from telos.judge.data_plots import draw_measures

            draw_measures(found, Path(options.plot))
    if options.json == "-":
        print_json(found.to_json())
        return
    if options.json is not None:
        from telos.core.files import write_json

        write_json(options.json, found.to_json())
    show(found)
    for file in (options.plot, options.json):
        if file is not None:
            print(file)


def transitions(what: str) -> Any:
    """The transitions that `what` names; TelosError for other data, with their kind."""
    from telos.data.formats import load
    from telos.data.records import Transitions

    data = load(what)
    if not isinstance(data, Transitions):
        raise TelosError(
            f"{what} holds no transitions", expected="episodes of states, actions and rewards: .npz, .hdf5, minari:ID, "
            "gym:ENV, or a table with a column session", got=f"{type(data).__name__}, {len(data)} rows",
            fix="give data of an environment",
        )  # fmt: skip
    return data


def end(option: str, text: str | None, discount: float) -> float | None:
    """A return, as a number or as the mean of a data set's episodes."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        from telos.data.measures import mean_return

        return mean_return(transitions(text), discount)
    if value - value != 0:
        raise TelosError(f"{option} is not finite", expected="a finite return, or data", got=text)
    return value


def show(found: Any) -> None:
    """The numbers as a table, notes below."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows(found):
        table.add_row(name, text)
    console = Console(highlight=False)
    console.print(table, markup=False)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)


def rows(found: Any) -> list[tuple[str, str]]:
    """(name, text) of each measure."""
    exact = found.entropy is not None
    ends = ", ".join(f"{count} {words}" for count, words in zip(
        (found.ends[name] for name in ("terminated", "truncated", "recording")),
        ("terminated", "truncated", "cut by the end of the recording"), strict=True,
    ) if count)  # fmt: skip
    table = [
        ("transitions", f"{found.transitions}"),
        ("episodes", f"{found.episodes}: {ends}"),
        ("lengths", spread(found.lengths)),
        ("returns", f"{spread(found.returns)}; {found.positive:.1%} above 0, discount {number(found.discount)}"),
        ("TQ", quality(found)),
        ("unique pairs", f"{found.unique:.0f}{'' if exact else ' (estimated)'}, {found.share:.4f} of the transitions"),
    ]
    if exact:
        table.append(("entropy", f"{found.entropy:.4f} nats, perplexity {found.perplexity:.1f}"))
    if found.saco is not None:
        ratio = (
            f"{found.unique_compared:.0f} / {found.reference_unique:.0f} unique pairs in {found.compared} transitions"
        )
        log = "" if found.lsaco is None else f"; lSACo {found.lsaco:.4f}"
        table.append(("SACo", f"{found.saco:.4f} ({ratio}){log}"))
    return [*table, ("actions", covered(found)), *rest(found)]


def rest(found: Any) -> list[tuple[str, str]]:
    """What is worth a line only where there is something, and the duplicates."""
    table = []
    if found.constant:
        table.append(("constant", ", ".join(found.constant)))
    if found.duplicates is not None:
        table.append(("duplicates", f"{found.duplicates} transitions ({found.duplicates / found.transitions:.1%})"))
    return table


def quality(found: Any) -> str:
    """TQ with what it lies between, and how that is known."""
    ends = []
    for name, value in (("random", found.random_return), ("expert", found.expert_return)):
        inferred = f", {found.inferred[name]}" if name in found.inferred else ""
        ends.append(f"{name} {number(value)}{inferred}")
    between = f"(0 is {ends[0]}; 1 is {ends[1]})"
    return f"{'-' if found.tq is None else f'{found.tq:.4f}'} {between}"


def spread(found: Any) -> str:
    """Mean, and the five numbers between the extremes."""
    five = (found.least, found.lower, found.median, found.upper, found.most)
    return f"mean {number(found.mean)}; least, quartiles, most: {' | '.join(map(number, five))}"


def covered(found: Any) -> str:
    """Shares of discrete actions, or of bins used a dimension."""
    discrete = found.action_shares is not None
    values = found.action_shares if discrete else found.action_coverage
    text = " ".join(f"{value:.3f}" for value in values[:20]) + (" ..." if len(values) > 20 else "")
    return f"{'shares' if discrete else 'bins used, a dimension'}: {text}"
