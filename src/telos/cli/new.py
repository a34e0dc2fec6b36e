"""telos new: the skeleton of a paper, for those who add one to telos."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from telos import catalogue
from telos.cli.common import Parser
from telos.cli.templates import CLAIM, METHOD, TEST
from telos.core.errors import TelosError
from telos.core.files import write_atomic
from telos.core.registry import entries, planned, public_classes
from telos.judge.results import repository

HEADER = ("method", "title", "arxiv", "year", "url", "purpose", "product", "data", "summary", "claim")
WIDTH = 120


def run(argv: Sequence[str]) -> None:
    parser = Parser(
        "new",
        "Writes method, claim and tests of a paper: a skeleton that runs (it clones behaviour) and marks with TODO\n"
        "what is left. Nothing is overwritten. Works in a source checkout.",
    )
    parser.add_argument("slug", metavar="SLUG", help="a planned paper, or a new slug with --family")
    parser.add_argument("--family", help="where a paper goes that the catalogue has not")
    options = parser.read(argv)
    root = repository()
    if root is None or not (root / "tests").is_dir():
        raise TelosError("telos new needs a source checkout", fix="clone the repository and pip install -e .")
    row = paper(options.slug, options.family)
    files = skeleton(row)
    for path in files:
        if (root / path).exists():
            raise TelosError(f"{path} is there already", expected="a paper that has not been begun")
    package = root / "src/telos/methods" / row["family"] / "__init__.py"
    if not package.exists():
        write_atomic(package, f'"""Methods of the family {row["family"]}."""\n')
    for path, text in files.items():
        write_atomic(root / path, text)
        print(path)
    print("\nNext: replace what is marked TODO, then")
    print(f"  pytest {list(files)[-1]}\n  telos check {row['slug']} --quick\n  telos fit {row['slug']} --help")


def paper(slug: str, family: str | None) -> dict[str, Any]:
    """The planned row of `slug`, or one of placeholders for a paper that the catalogue has not.

    Raises:
        TelosError: not a slug; a method that is there; an unknown slug without a family; a family that differs.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", slug):
        raise TelosError(f"'{slug}' cannot be a slug", expected="small letters, digits and _", got=slug)
    if slug in entries():
        raise TelosError(f"'{slug}' has a method already", fix=f"telos show {slug}")
    row = planned().get(slug)
    if row is not None:
        if family not in (None, row["family"]):
            raise TelosError(f"'{slug}' belongs to the family {row['family']}", got=family or "")
        return row
    if family is None:
        error = catalogue.unknown(slug, [*planned()])
        raise TelosError(error.what, expected="a planned paper, or --family for another", fix=error.fix)
    if family not in catalogue.families():
        raise TelosError(f"no family is called '{family}'", expected=", ".join(catalogue.families()))
    todo = {name: f"TODO {name}" for name in HEADER}
    return todo | {
        "slug": slug, "family": family, "method": slug.upper(), "year": 2000, "url": "https://arxiv.org/abs/TODO",
        "arxiv": "TODO", "purpose": ["reward"], "product": "Policy", "data": "Transitions",
    }  # fmt: skip


def skeleton(row: dict[str, Any]) -> dict[Path, str]:
    """Path from the root of the source tree -> contents."""
    slug, family = row["slug"], row["family"]
    values = {
        "METHOD": row["method"],
        "SLUG": slug,
        "FAMILY": family,
        "CLASS": class_name(row),
        "LABEL": quoted(row["method"]),
        "CITATION": textwrap.fill(f"{row['title']}, arXiv {row['arxiv']}, {row['year']}.", WIDTH),
        "HEADER": header(row),
    }

    def filled(template: str) -> str:
        return re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], template)

    return {
        Path(f"src/telos/methods/{family}/{slug}.py"): filled(METHOD),
        Path(f"src/telos/claims/{slug}.py"): filled(CLAIM),
        Path(f"tests/methods/test_{slug}.py"): filled(TEST),
    }


def class_name(row: dict[str, Any]) -> str:
    """A class's name from the method's short name ("f-DPG" -> "FDPG"), or from the slug where that will not do."""
    short = re.sub(r"\W", "", re.split(r"[ (/]", row["method"])[0])
    name = short[:1].upper() + short[1:]
    if not name.isidentifier() or not name.isascii() or name in public_classes():
        name = "".join(part.capitalize() for part in row["slug"].split("_"))
    return name


def header(row: dict[str, Any]) -> str:
    """The lines of PAPER that the catalogue knows."""
    lines = []
    for name in HEADER:
        value = row[name]
        if isinstance(value, str):
            text = quoted(value) if len(value) + len(name) < WIDTH - 12 else broken(value, len(name))
        else:
            text = "[" + ", ".join(map(quoted, value)) + "]" if isinstance(value, list) else str(value)
        lines.append(f'    "{name}": {text},')
    return "\n".join(lines)


def broken(text: str, used: int) -> str:
    """A long text as several literals, one a line."""
    pieces = textwrap.wrap(text, WIDTH - 12 - used, drop_whitespace=False)
    return "\n    ".join(quoted(piece) for piece in pieces)


def quoted(text: str) -> str:
    """A string literal, in double quotes where it holds none."""
    escaped = text.replace("\\", "\\\\")
    return repr(text) if '"' in text else f'"{escaped}"'
