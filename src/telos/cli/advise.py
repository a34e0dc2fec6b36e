"""telos advise: measures of the user's data, and which methods suit it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from telos.cli.common import Parser, number, print_json


def run(argv: Sequence[str]) -> None:
    parser = Parser(
        "advise",
        "Measures transitions, logged decisions or preference pairs, and says which methods suit them and why, with\n"
        "our verdict on each method's claim, and what the data cannot tell.",
    )
    parser.add_argument("data", metavar="D", help="what `telos fit` takes as --data")
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    options = parser.read(argv)
    from telos.data.formats import load
    from telos.judge.advise import advise

    data: Any = load(options.data)
    advice = advise(data)
    if options.json:
        print_json({"data": data.origin, **advice.to_json()})
    else:
        show(advice, options.data, comparable(advice, type(data)))


def comparable(advice: Any, kind: type) -> list[str]:
    """The first three suited methods that learn from these records alone."""
    from telos.core.registry import use

    return [one.slug for one in advice.suited if use(one.slug).data is kind][:3]


def show(advice: Any, data: str, methods: Sequence[str]) -> None:
    """Measures, methods with reasons, and what is not known."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in advice.measured.items():
        table.add_row(name, number(value) if isinstance(value, float) else str(value))
    console.print(table, markup=False)
    for title, suggestions in (("To try, the first first", advice.suited), ("Not for these data", advice.unsuited)):
        if not suggestions:
            continue
        console.print(f"\n{title}", style="bold")
        listed = Table(box=None, pad_edge=False, show_header=False)
        for one in suggestions:
            listed.add_row(one.slug, one.verdict or "", f"{one.reason} {one.options}".strip())
        console.print(listed, markup=False)
    console.print("\nNot known from these data", style="bold")
    for sentence in advice.unknown:
        console.print(f"- {sentence}", markup=False)
    if methods:
        console.print(f"\ntelos compare --data {data} --methods {','.join(methods)} --steps N measures.", markup=False)
