"""The catalogue: the 68 papers and the baselines as rows, with their verdicts. Reads files only: no torch, no numpy.

A row is JSON with these keys, always all of them:

    slug, family, method, title, arxiv, year, url, purpose (list), product, data, summary, claim
    reference   of a baseline; None for papers
    baseline    True for a method that is not one of the papers
    available   True if the method can be run; False if the paper is planned
    verdict     at laptop scale: "confirmed", "not shown", "refuted", "indicative" or "stale"; "no verdict" for a
                method without a result; "planned"; None for a baseline
    verdicts    {scale: verdict} of every recorded result
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from typing import Any

from telos.core.errors import TelosError
from telos.core.registry import PACKAGE, Entry, entries, planned
from telos.judge.results import Result, read_results

Row = dict[str, Any]

FIELDS = ("method", "title", "arxiv", "year", "url", "purpose", "product", "data", "summary", "claim", "reference")


def papers(results: Mapping[tuple[str, str], Result] | None = None) -> list[Row]:
    """A row for every paper: the catalogue's order, then papers that the catalogue has not.

    Args:
        results: recorded results by (slug, scale); those of the source tree by default.
    """
    found = read_results() if results is None else results
    known = {slug: entry for slug, entry in entries().items() if not entry.baseline}
    return [row(slug, known.get(slug), found) for slug in dict.fromkeys([*planned(), *known])]


def baselines() -> list[Row]:
    """A row for every method that is not one of the papers."""
    return [row(slug, entry, {}) for slug, entry in entries().items() if entry.baseline]


def row(slug: str, entry: Entry | None, results: Mapping[tuple[str, str], Result]) -> Row:
    """The planned row with the header of the method's file over it."""
    known = planned().get(slug, {}) | (entry.header if entry else {})
    verdicts = {scale: verdict(result) for (name, scale), result in results.items() if name == slug}
    baseline = entry is not None and entry.baseline
    family = entry.family if entry else known["family"]
    return {
        "slug": slug,
        "family": family,
        **{name: known.get(name) for name in FIELDS},
        "baseline": baseline,
        "available": entry is not None,
        "verdict": None if baseline else verdicts.get("laptop", "no verdict") if entry else "planned",
        "verdicts": verdicts,
    }


def verdict(result: Result) -> str:
    """The verdict's word, or "stale" for a result that no longer speaks for the code."""
    return "stale" if result.get("stale") else result["verdict"]


def find(slug: str) -> Row:
    """The row of a paper or baseline.

    Raises:
        TelosError: no such slug, with the nearest ones.
    """
    rows = {row["slug"]: row for row in [*papers(), *baselines()]}
    if slug not in rows:
        raise unknown(slug, [*rows])
    return rows[slug]


def unknown(slug: str, known: list[str]) -> TelosError:
    """The error for a slug that is not there."""
    close = difflib.get_close_matches(slug, set(known), n=3)
    fix = f"did you mean {' or '.join(close)}?" if close else "`telos papers` and `telos papers --baselines` list them"
    return TelosError(f"no paper or method is called '{slug}'", expected="a slug, as dpo", fix=fix)


def families() -> list[str]:
    """The families in the catalogue's order."""
    named = [row["family"] for row in planned().values()] + [entry.family for entry in entries().values()]
    return list(dict.fromkeys(named))


def hyperparameters(entry: Entry) -> dict[str, list[dict[str, str]]]:
    """Class -> its options as {"name", "type", "default", "doc"}, read from the source without importing it."""
    file = PACKAGE.joinpath(*entry.module.split(".")[1:]).with_suffix(".py")
    found: dict[str, list[dict[str, str]]] = {}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name in entry.classes:
            found[node.name] = [
                {
                    "name": field.target.id,
                    "type": ast.unparse(field.annotation),
                    "default": ast.unparse(field.value) if field.value else "",
                    "doc": documented(after),
                }
                for field, after in zip(node.body, [*node.body[1:], None])
                if isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and not ast.unparse(field.annotation).startswith("ClassVar")
            ]
    return found


def documented(node: ast.stmt | None) -> str:
    """The text of a docstring literal, on one line; empty for anything else."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""
