"""telos show: one paper or baseline, with its measured result and how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from telos import catalogue
from telos.cli.common import Parser, number, print_json
from telos.cli.papers import STYLES
from telos.judge.results import Result

SECTIONS = {"equations": "Equations", "deviations": "What differs from the paper", "traps": "Traps"}
VERBATIM = ("Equations", "Use", "At the paper's scale")
"""What one copies: lines are not broken."""


def run(argv: Sequence[str]) -> None:
    parser = Parser("show", "A paper: its claim, the paper's figure, the measured result, options and usage.")
    parser.add_argument("slug", metavar="SLUG", help="as `telos papers` and `telos papers --baselines` list them")
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    options = parser.read(argv)
    page = catalogue.page(options.slug)
    if options.json:
        print_json(page)
    else:
        show(page, Console(highlight=False))


def show(page: Mapping[str, Any], console: Console) -> None:
    """The page as text."""
    source = f"arXiv {page['arxiv']}" if page["arxiv"] else page["reference"] or ""
    console.print(Text(page["method"], style="bold").append(f"  {page['slug']}", style="not bold dim"))
    console.print(Text(f"{page['title']}. {page['year']}, {source}"))
    console.print(Text(f"{page['family']} · {', '.join(page['purpose'])} · {page['data']} -> {page['product']}", "dim"))
    if page["url"]:
        console.print(Text(page["url"], style="dim"), soft_wrap=True)
    section(console, "What it does", [page["summary"]])
    if page["claim"]:
        section(console, "Claim", [page["claim"]])
    if page["paper_claim"]:
        section(console, f"In the paper: {page['paper_claim']['where']}", [page["paper_claim"]["text"]])
    if not page["baseline"]:
        heading(console, "Measured")
        for scale, result in page["results"].items():
            show_result(scale, result, console)
        if not page["results"]:
            indented(console, unmeasured(page))
    for key, title in SECTIONS.items():
        section(console, title, page[key])
    for name, fields in page["options"].items():
        heading(console, f"Options of {name}")
        console.print(options_table(fields))
    section(console, "Use", [*page["usage"], *([f"telos fit {page['slug']} --help"] if page["available"] else [])])
    if page["at_scale"]:
        section(console, "At the paper's scale", [page["at_scale"]])


def unmeasured(page: Mapping[str, Any]) -> Text:
    """Why there is no result."""
    if not page["available"]:
        return Text("planned: there is no method yet")
    if not page["has_claim"]:
        return Text("no verdict: the claim has not been written yet")
    return Text(f"no verdict yet: `telos check {page['slug']}` runs the claim")


def show_result(scale: str, result: Result, console: Console) -> None:
    """Verdict, parts with intervals, and what it cost."""
    word = catalogue.verdict(result)
    line = Text(word, style=STYLES.get(word, "")).append(f"  {scale}", style="not bold")
    if word == "stale":
        line.append(f" (was {result['verdict']}; the code under it has changed)", style="not bold")
    indented(console, line)
    parts = Table(box=None, pad_edge=False, show_header=False)
    for part in result["parts"]:
        parts.add_row(Text(part["text"]), measured(part), Text(part["status"], style=STYLES.get(part["status"], "")))
    console.print(Padding(parts, (0, 0, 0, 2)))
    cost = f"{len(result['seeds'])} seeds, {result['wall_seconds']:.0f} s on {result['machine']['cpu']}"
    indented(console, Text(f"{cost}, {result['date'][:10]}", style="dim"))


def measured(part: Mapping[str, Any]) -> Text:
    """The estimate with its interval, or how many seeds an exact check held on."""
    interval = part["interval"]
    if interval is None:
        return Text(f"{sum(value == 1 for value in part['values'])} of {part['seeds']} seeds")
    low, high = number(interval["low"]), number(interval["high"])
    return Text(f"{number(interval['estimate'])} [{low}, {high}]")


def options_table(fields: Sequence[Mapping[str, str]]) -> Padding:
    """Name, default, and what it does."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(max_width=16)
    table.add_column(ratio=1)
    for field in fields:
        flag = "--" + field["name"].replace("_", "-")
        table.add_row(Text(flag), Text(field["default"].strip("'"), style="cyan"), Text(field["doc"]))
    return Padding(table, (0, 0, 0, 2))


def heading(console: Console, title: str) -> None:
    console.print()
    console.print(Text(title, style="bold"))


def section(console: Console, title: str, lines: Sequence[str]) -> None:
    """A heading and its lines; nothing where there are none."""
    if lines:
        heading(console, title)
        for line in lines:
            if title in VERBATIM:
                console.print(Text(f"  {line}"), soft_wrap=True)
            else:
                indented(console, Text(line))


def indented(console: Console, text: Text) -> None:
    console.print(Padding(text, (0, 0, 0, 2), expand=False))
