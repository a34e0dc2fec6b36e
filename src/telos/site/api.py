"""The catalogue as JSON; schema.json beside this file describes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from telos.site.content import Library

SCHEMA = Path(__file__).resolve().parent / "schema.json"

PAPER = (
    "slug", "family", "method", "title", "arxiv", "year", "url", "purpose", "product", "data", "summary", "claim",
    "reference", "baseline", "available", "verdict", "verdicts", "measured",
)  # fmt: skip
"""What a row of all papers holds."""
PAGE = (
    *PAPER, "paper_claim", "equations", "options", "deviations", "traps", "usage", "terms", "at_scale", "has_claim",
)  # fmt: skip
"""What a paper's own file holds besides its results."""
RUN = ("seed", "measures", "seconds")


def papers(library: Library) -> bytes:
    """api/papers.json: every paper, in the catalogue's order."""
    cards = {card["slug"]: card for card in library.cards}
    rows = [{key: cards[row["slug"]][key] for key in PAPER} for row in library.papers]
    return encoded({"papers": rows, "false_verdicts": library.false_verdicts})


def paper(library: Library, slug: str) -> bytes:
    """papers/<slug>.json: a paper or baseline with its results, without the points that runs logged."""
    page = library.page(slug)
    results = {}
    for scale, result in page["results"].items():
        arms = {
            name: {key: value for key, value in arm.items() if key not in ("digest", "runs")}
            | {"runs": [{key: run[key] for key in RUN} for run in arm["runs"]]}
            for name, arm in result["arms"].items()
        }
        results[scale] = {**result, "arms": arms, "file": f"results/{slug}.{scale}.json"}
    sources = [{key: each[key] for key in ("path", "title", "definitions")} for each in page["source"]]
    return encoded({**{key: page[key] for key in PAGE}, "results": results, "source": sources})


def encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
