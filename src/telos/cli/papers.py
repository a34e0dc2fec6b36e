"""telos papers: what there is, at once."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from telos import catalogue
from telos.catalogue import Row
from telos.cli.common import Parser, print_json
from telos.core.errors import TelosError

STYLES = {
    "confirmed": "bold green", "refuted": "bold red", "not shown": "bold yellow", "indicative": "bold cyan",
    "stale": "magenta", "no verdict": "cyan", "planned": "dim",
}  # fmt: skip
WIDE = 140
"""From this width on the claim has a column of its own."""


def run(argv: Sequence[str]) -> None:
    parser = Parser("papers", "The papers with their verdicts; planned ones have no method yet.")
    parser.add_argument("--family", help="only this family: preferences, offline_rl, ...")
    parser.add_argument("--search", metavar="TEXT", help="only rows in which every word of TEXT stands")
    parser.add_argument("--baselines", action="store_true", help="the methods that papers are compared with, instead")
    parser.add_argument("--json", action="store_true", help="full rows (keys: see telos.catalogue)")
    options = parser.read(argv)
    rows = catalogue.baselines() if options.baselines else catalogue.papers()
    if options.family is not None:
        known = catalogue.families()
        if options.family not in known:
            raise TelosError(f"no family is called '{options.family}'", expected=", ".join(known))
        rows = [row for row in rows if row["family"] == options.family]
    if options.search is not None:
        rows = [row for row in rows if matches(row, options.search)]
    if options.json:
        print_json(rows)
    else:
        show(rows, Console())


def matches(row: Row, text: str) -> bool:
    """Whether every word of `text` stands somewhere in the row, in any case."""
    haystack = " ".join(str(value) for value in row.values()).lower()
    return all(word in haystack for word in text.lower().split())


def show(rows: list[Row], console: Console) -> None:
    """A table where there is room for the claims, else a line a paper and its claim below."""
    if not rows:
        console.print(Text("nothing matches"))
        return
    if console.width >= WIDE:
        console.print(table(rows))
    else:
        stack(rows, console)
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in STYLES}
    tally = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    kind = "baselines" if rows[0]["baseline"] else "papers"
    console.print(Text(f"{len(rows)} {kind}{': ' if tally else ''}{tally}. `telos show SLUG` tells more.", style="dim"))


def table(rows: list[Row]) -> Table:
    """One table, the families as sections."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    for name in ("slug", "method", "year", "arXiv", "purpose", "verdict"):
        grid.add_column(
            name, max_width=18 if name in ("method", "purpose") else None, no_wrap=name in ("slug", "arXiv")
        )
    grid.add_column("summary" if rows[0]["baseline"] else "claim", ratio=1)
    for family, group in by_family(rows).items():
        grid.add_section()
        grid.add_row(Text(family, style="bold"))
        for row in group:
            grid.add_row(
                Text(row["slug"]), Text(row["method"]), str(row["year"]), row["arxiv"] or "", purposes(row),
                Text(row["verdict"] or "", style=STYLES.get(row["verdict"], "")), Text(row["claim"] or row["summary"]),
            )  # fmt: skip
    return grid


def stack(rows: list[Row], console: Console) -> None:
    """Two or three lines a paper, for terminals of 80 columns."""
    width = max(len(row["slug"]) for row in rows) + 2
    for family, group in by_family(rows).items():
        console.print(Text(family, style="bold"))
        for row in group:
            line = Text(f"  {row['slug']:{width}}", style="bold")
            line.append(f"{row['year']}  {row['arxiv'] or '':12}", style="not bold")
            line.append(f"{row['verdict'] or '':12}", style=f"not bold {STYLES.get(row['verdict'], '')}")
            line.append(purposes(row), style="not bold")
            console.print(line, no_wrap=True, overflow="ellipsis")
            text = Text(row["method"], style="italic").append(f"  {row['claim'] or row['summary']}", style="not italic")
            console.print(Padding(text, (0, 0, 0, 4), expand=False))
        console.print()


def by_family(rows: list[Row]) -> dict[str, list[Row]]:
    families = dict.fromkeys(row["family"] for row in rows)
    return {family: [row for row in rows if row["family"] == family] for family in families}


def purposes(row: Row) -> str:
    return ", ".join(row["purpose"])
