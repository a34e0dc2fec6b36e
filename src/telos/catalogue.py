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
from pathlib import Path
from typing import Any

from telos.core.errors import TelosError
from telos.core.registry import PACKAGE, Entry, entries, planned
from telos.judge.results import Result, read_results

Row = dict[str, Any]

FIELDS = ("method", "title", "arxiv", "year", "url", "purpose", "product", "data", "summary", "claim", "reference")
LISTS = ("equations", "deviations", "traps", "usage", "terms")


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


def comparisons() -> list[str]:
    """Families whose methods are measured together: those with a claim of their name."""
    families = sorted({entry.family for entry in entries().values()})
    return [family for family in families if (PACKAGE / "claims" / f"{family}.py").is_file()]


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


def page(slug: str, results: Mapping[tuple[str, str], Result] | None = None) -> Row:
    """The row of a paper or baseline with what its page says besides.

    Further keys: paper_claim {"where", "text", "value", "data", "model", "mechanism"} or None; equations, deviations,
    traps, usage, terms (lists); at_scale (text or None); options {class: [{"name", "type", "default", "doc", "line"}]};
    has_claim; results {scale: result.json}.

    Raises:
        TelosError: no such slug.
    """
    found = read_results() if results is None else results
    return {**find(slug, found), **details(slug, found)}


def details(slug: str, results: Mapping[tuple[str, str], Result]) -> Row:
    """What the page of a known slug says besides its row: the further keys of `page`."""
    entry = entries().get(slug)
    header = entry.header if entry else {}
    return {
        **{key: header.get(key) for key in ("paper_claim", "at_scale")},
        **{key: header.get(key, []) for key in LISTS},
        "options": hyperparameters(entry) if entry else {},
        "has_claim": entry is not None and entry.claim_module is not None,
        "results": {scale: result for (name, scale), result in results.items() if name == slug},
    }


def headline(result: Result) -> dict[str, Any] | None:
    """The part of a result that stands for it: the first with an interval, or None where all are exact checks."""
    return next((part for part in result["parts"] if part["interval"]), None)


def verdict(result: Result) -> str:
    """The verdict's word, or "stale" for a result that no longer speaks for the code."""
    return "stale" if result.get("stale") else result["verdict"]


def find(slug: str, results: Mapping[tuple[str, str], Result] | None = None) -> Row:
    """The row of a paper or baseline.

    Raises:
        TelosError: no such slug, with the nearest ones.
    """
    rows = {row["slug"]: row for row in [*papers(results), *baselines()]}
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


def source_file(entry: Entry) -> Path:
    """The file of a method."""
    return PACKAGE.joinpath(*entry.module.split(".")[1:]).with_suffix(".py")


def hyperparameters(entry: Entry) -> dict[str, list[dict[str, Any]]]:
    """Class -> its options as {"name", "type", "default", "doc", "line"}, read from the source without importing it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for node in ast.parse(source_file(entry).read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name in entry.classes:
            found[node.name] = [
                {
                    "name": field.target.id,
                    "type": ast.unparse(field.annotation),
                    "default": ast.unparse(field.value) if field.value else "",
                    "doc": documented(after),
                    "line": field.lineno,
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
