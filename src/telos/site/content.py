"""What the pages say, as plain values: the catalogue, its results and what follows from them. Nothing is typed by hand.

Nothing here, nor in the templates, speaks of a particular paper: adding one changes no file of the site.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from telos import catalogue
from telos.catalogue import Row
from telos.core.registry import PACKAGE, Entry, entries
from telos.judge.results import SCALES, Change, Result, changes, read_results, results_folder

VERDICTS = {
    "confirmed": "every part of the claim holds with its margin",
    "not shown": "no interval speaks against the claim, and not all parts hold",
    "refuted": "an interval excludes a part of the claim",
    "indicative": "too few seeds for a verdict",
    "stale": "the code has changed since and no longer gives these numbers",
    "no verdict": "there is a method, and no result yet",
    "planned": "the method is still to be written",
}
"""The words of verdicts, with equal rank, and what they mean."""
JUDGED = ("confirmed", "not shown", "refuted")

DATA = {
    "preferences": r"preference|comparison",
    "prompts": r"prompt|question|problem",
    "texts": r"\btexts?\b|response|instruction|language model",
    "demonstrations": r"demonstration|expert",
    "fixed trajectories": r"offline|trajector|transition|play|sequences|traces",
    "logged decisions": r"logged|\blogs?\b|events?\b",
    "environment": r"environment|simulator|dynamics|stream",
    "reward or scorer": r"reward|verifier|scored?\b|utility|oracle|objective|purpose",
    "images": r"image|camera|scene",
    "graphs": r"graph",
}
"""Kinds of data by the words in which a paper's row says what it needs; a paper may need several."""
OTHER = "other"

COSTS = {"1": "up to 1 minute", "5": "up to 5 minutes", "10": "up to 10 minutes", "more": "longer"}
"""Buckets of what the laptop check took; the keys are minutes."""

FALSE_SIDE = 0.025
"""The chance that a 95 % interval lies wholly on the wrong side of the truth."""


@dataclass(frozen=True)
class Library:
    """A snapshot of the catalogue and of its recorded results.

    Args:
        results: by (slug, scale).
        pictures: the file of each result's own picture, where it is there.
    """

    results: Mapping[tuple[str, str], Result] = field(default_factory=read_results)
    pictures: Mapping[tuple[str, str], Path] = field(default_factory=lambda: pictures())

    @cached_property
    def papers(self) -> list[Row]:
        return catalogue.papers(self.results)

    @cached_property
    def baselines(self) -> list[Row]:
        return catalogue.baselines()

    @cached_property
    def rows(self) -> dict[str, Row]:
        """Every paper and baseline by slug."""
        return {row["slug"]: row for row in [*self.papers, *self.baselines]}

    @cached_property
    def changes(self) -> list[Change]:
        """New papers and changed verdicts, newest first."""
        return changes(self.results)

    @cached_property
    def cards(self) -> list[dict[str, Any]]:
        """What the feed shows of each paper, those with a verdict first, newest first among equals."""
        found = [self.card(row) for row in self.papers]
        found.sort(key=newest, reverse=True)
        return sorted(found, key=lambda card: [*VERDICTS].index(card["verdict"]) >= UNMEASURED)

    def card(self, row: Row) -> dict[str, Any]:
        """A row with its headline part, cost and what the filters and the order ask for."""
        measured = {scale: summary(self.results[row["slug"], scale]) for scale in self.scales(row["slug"])}
        first = measured.get("laptop") or next(iter(measured.values()), None)
        entry = entries().get(row["slug"])
        return {
            **row,
            "measured": measured,
            "words": list(dict.fromkeys([each["verdict"] for each in measured.values()] or [row["verdict"] or ""])),
            "headline": first and first["headline"],
            "effect": distance(first["headline"]) if first and first["headline"] else None,
            "seeds": first and first["seeds"],
            "seconds": first and first["seconds"],
            "cost": cost(first["seconds"]) if first else None,
            "needs": needs(row["data"]),
            "terms": entry.header.get("terms", []) if entry else [],
        }

    def scales(self, slug: str) -> list[str]:
        """The scales at which a paper has been measured, laptop first."""
        found = [scale for name, scale in self.results if name == slug]
        return sorted(found, key=lambda scale: (SCALES.index(scale) if scale in SCALES else len(SCALES), scale))

    @cached_property
    def tally(self) -> dict[str, int]:
        """Papers by verdict at any scale; the three words of a judged claim stand even where no paper has them."""
        counts = {word: sum(word in card["words"] for card in self.cards) for word in VERDICTS}
        return {word: count for word, count in counts.items() if count or word in JUDGED}

    @cached_property
    def facets(self) -> dict[str, dict[str, int]]:
        """Filter -> value -> papers."""
        found: dict[str, dict[str, int]] = {name: {} for name in ("family", "purpose", "product", "data", "cost")}
        for card in self.cards:
            named = {"family": [card["family"]], "purpose": card["purpose"], "product": [card["product"]]}
            named |= {"data": card["needs"], "cost": [card["cost"]] if card["cost"] else []}
            for name, values in named.items():
                for value in values:
                    found[name][value] = found[name].get(value, 0) + 1
        found["data"] = {kind: found["data"][kind] for kind in [*DATA, OTHER] if kind in found["data"]}
        found["cost"] = {key: found["cost"][key] for key in COSTS if key in found["cost"]}
        return found

    @cached_property
    def false_verdicts(self) -> dict[str, float]:
        """How many verdicts over all recorded results luck alone would get wrong, at most.

        confirmed: if every claim were false, just at its margin: a claim is confirmed wrongly only if its false part
        is, which has 2.5 % at most. refuted: if every claim were true: 2.5 % for each part that has an interval.
        """
        judged = [result for result in self.results.values() if catalogue.verdict(result) in JUDGED]
        parts = [sum(part["interval"] is not None for part in result["parts"]) for result in judged]
        return {
            "claims": len(judged),
            "parts": sum(parts),
            "confirmed": FALSE_SIDE * sum(count > 0 for count in parts),
            "refuted": sum(min(1.0, FALSE_SIDE * count) for count in parts),
        }

    @cached_property
    def families(self) -> dict[str, list[str]]:
        """Family -> slugs of the methods that can be run, papers before baselines, without empty families."""
        found: dict[str, list[str]] = {}
        for row in [*self.papers, *self.baselines]:
            if row["available"]:
                found.setdefault(row["family"], []).append(row["slug"])
        return found

    def together(self, family: str) -> dict[str, Result]:
        """By scale, the measured comparison of a family's methods: the claim that bears the family's name."""
        return {scale: self.results[family, scale] for scale in self.scales(family)}

    def address(self, slug: str) -> str:
        """The page on which a result stands."""
        return f"compare/{slug}" if slug in self.families else f"papers/{slug}"

    def title(self, slug: str) -> str:
        """The method's name, or the family's in words."""
        return self.rows[slug]["method"] if slug in self.rows else slug.replace("_", " ")

    def page(self, slug: str) -> dict[str, Any]:
        """Everything on a paper or baseline: its card and `catalogue.details`."""
        more = catalogue.details(slug, self.results)
        results = {scale: more["results"][scale] for scale in self.scales(slug)}
        return {**self.card(self.rows[slug]), **more, "results": results, "source": source(entries().get(slug))}


UNMEASURED = [*VERDICTS].index("no verdict")


def pictures() -> dict[tuple[str, str], Path]:
    """The pictures beside the recorded results."""
    folder = results_folder()
    files = sorted(folder.glob("*.png")) if folder else []
    return {(name[0], name[1]): file for file in files if len(name := file.stem.split(".")) == 2}


def summary(result: Result) -> dict[str, Any]:
    """A result in a few numbers: what listings and the JSON of all papers hold."""
    part = catalogue.headline(result)
    interval = part["interval"] if part else {}
    named = {key: part[key] for key in ("part", "text", "status")} if part else {}
    return {
        "verdict": catalogue.verdict(result),
        "seeds": len(result["seeds"]),
        "seconds": result["wall_seconds"],
        "date": result["date"],
        "parts": {status: sum(p["status"] == status for p in result["parts"]) for status in JUDGED},
        "headline": {**named, "interval": {k: interval[k] for k in ("estimate", "low", "high")}} if part else None,
    }


def bounds(part: Mapping[str, Any]) -> list[float]:
    """What a part compares its value with: its margin, tolerance (both sides) or stated bounds."""
    if part["kind"] == "Better":
        return [part["margin"]]
    if part["kind"] == "Within":
        return [-part["tolerance"], part["tolerance"]]
    return [bound for bound in (part.get("at_least"), part.get("at_most")) if bound is not None]


def distance(headline: Mapping[str, Any]) -> float:
    """How far the estimate lies beyond its bound, in half-widths of its interval: comparable over metrics.

    Above 1 the interval clears the bound, below -1 it lies wholly on the wrong side; cut off at 99 either way.
    """
    part, interval = headline["part"], headline["interval"]
    estimate = interval["estimate"]
    if part["kind"] == "Better":
        beyond = estimate - part["margin"]
    elif part["kind"] == "Within":
        beyond = part["tolerance"] - abs(estimate)
    else:
        above = math.inf if part["at_least"] is None else estimate - part["at_least"]
        below = math.inf if part["at_most"] is None else part["at_most"] - estimate
        beyond = min(above, below)
    half = (interval["high"] - interval["low"]) / 2
    return math.copysign(min(abs(beyond) / half, 99.0) if half else 99.0, beyond) if beyond else 0.0


def cost(seconds: float) -> str:
    """The bucket of a laptop check's wall time."""
    return next((key for key in COSTS if key != "more" and seconds <= 60 * int(key)), "more")


def needs(data: str) -> list[str]:
    """The kinds of data that a row's words name."""
    return [kind for kind, words in DATA.items() if re.search(words, data, re.I)] or [OTHER]


def newest(card: Mapping[str, Any]) -> tuple[int, str]:
    """Orders by year, then by arXiv's number, which grows with time."""
    return card["year"], card["arxiv"] or ""


def source_files(entry: Entry | None) -> dict[str, tuple[str, Path]]:
    """The files of a method by the name of their page, each with a title: its own, its variants, then the claim."""
    if entry is None:
        return {}
    method = catalogue.source_file(entry)
    files = {
        entry.slug: ("method", method),
        f"{entry.slug}-variants": ("variants", method.with_name(f"{entry.slug}_variants.py")),
        f"{entry.slug}-claim": ("claim", PACKAGE / "claims" / f"{entry.slug}.py"),
    }
    return {page: (title, file) for page, (title, file) in files.items() if file.is_file()}


def source(entry: Entry | None) -> list[dict[str, Any]]:
    """The files of a method as {"page", "path", "title", "text", "definitions": [{"name", "kind", "line", "doc"}]}.

    Each definition stands at the top level, with its first line.
    """
    found: list[dict[str, Any]] = []
    for page, (title, file) in source_files(entry).items():
        text, path = file.read_text(), f"src/telos/{file.relative_to(PACKAGE).as_posix()}"
        found.append({"page": page, "title": title, "path": path, "text": text, "definitions": definitions(text)})
    return found


def definitions(text: str) -> list[dict[str, Any]]:
    """The classes, functions and tables at the top level of a source file, each with its line and first sentence."""
    found: list[dict[str, Any]] = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            doc = (ast.get_docstring(node) or "").split("\n\n")[0]
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found.append({"name": node.name, "kind": kind, "line": first, "doc": " ".join(doc.split())})
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name):
                found.append({"name": target.id, "kind": "value", "line": node.lineno, "doc": ""})
    return found
