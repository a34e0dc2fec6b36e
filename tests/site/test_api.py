"""The catalogue's JSON against its own schema, and the schema against JSON that is broken."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import jsonschema
import pytest

from telos.judge.results import read_results
from telos.site import api
from telos.site.content import JUDGED, VERDICTS, Library
from telos.site.render import Site

SCHEMA = json.loads(api.SCHEMA.read_text())
LIBRARY = Library()
FILES = Site(LIBRARY).files


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{name}"})


PAPERS, PAGE = validator("papers"), validator("page")


def load(path: str) -> Any:
    def refused(word: str) -> None:
        raise AssertionError(f"{path} holds {word}")

    return json.loads(FILES[path](), parse_constant=refused)


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert FILES["api/schema.json"]() == api.SCHEMA.read_bytes()
    assert SCHEMA["$defs"]["verdict"]["enum"] == [*VERDICTS] and SCHEMA["$defs"]["status"]["enum"] == [*JUDGED]
    assert SCHEMA["$defs"]["row"]["required"] == [*api.PAPER]
    assert set(SCHEMA["$defs"]["page"]["required"]) == {*api.PAGE, "results", "source"} - {*api.PAPER}


def test_all_papers_as_json():
    made = load("api/papers.json")
    PAPERS.validate(made)
    assert [row["slug"] for row in made["papers"]] == [row["slug"] for row in LIBRARY.papers]
    assert made["false_verdicts"] == LIBRARY.false_verdicts
    for row in made["papers"]:
        assert [*row] == [*api.PAPER]
        assert {scale: each["verdict"] for scale, each in row["measured"].items()} == row["verdicts"]


@pytest.mark.parametrize("slug", LIBRARY.rows)
def test_a_papers_json(slug: str):
    made = load(f"papers/{slug}.json")
    PAGE.validate(made)
    assert made["slug"] == slug and made["available"] == bool(made["options"])
    for scale, result in made["results"].items():
        recorded = read_results()[slug, scale] if slug == "prdc" else LIBRARY.results[slug, scale]
        assert (result["parts"], result["date"], result["verdict"]) == tuple(
            recorded[key] for key in ("parts", "date", "verdict")
        )
        assert result["file"] in FILES
        for name, arm in result["arms"].items():
            assert arm["summary"] == recorded["arms"][name]["summary"]
            assert [run["measures"] for run in arm["runs"]] == [r["measures"] for r in recorded["arms"][name]["runs"]]
            assert all([*run] == [*api.RUN] for run in arm["runs"])


MEASURED = load("papers/prdc.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("slug",), "No Slug"), (("year",), "2024"), (("purpose",), "goal"), (("product",), "Magic"),
        (("verdict",), "proven"), (("verdicts",), {"laptop": "proven"}), (("measured", "laptop", "seeds"), 0),
        (("measured", "laptop", "headline", "status"), "stale"), (("measured", "laptop", "headline", "interval"), {}),
        (("paper_claim",), {"where": "Figure 1"}), (("equations",), [1]), (("usage",), None),
        (("options",), {"A": [{"name": "b"}]}), (("results", "laptop", "verdict"), "stale"),
        (("results", "laptop", "seeds"), ["0"]), (("results", "laptop", "parts", 0, "values"), [None]),
        (("results", "laptop", "parts", 0, "part"), {"kind": "Best"}), (("results", "laptop", "arms"), []),
        (("results", "laptop", "history"), [{"date": "2026-01-01"}]), (("source",), [{"path": "a.py"}]),
        (("has_claim",), "yes"), (("results", "laptop", "wall_seconds"), "1 s"), (("terms",), "word"),
    ],
)  # fmt: skip
def test_a_broken_page_is_not_valid(path: tuple[Any, ...], value: Any):
    assert PAGE.is_valid(MEASURED)
    broken = deepcopy(MEASURED)
    *parents, last = path
    holder = broken
    for key in parents:
        holder = holder[key]
    holder[last] = value
    assert not PAGE.is_valid(broken)


@pytest.mark.parametrize("key", [*SCHEMA["$defs"]["page"]["required"], *SCHEMA["$defs"]["row"]["required"]])
def test_what_is_promised_cannot_be_missing(key: str):
    assert not PAGE.is_valid({name: value for name, value in MEASURED.items() if name != key})


def test_numbers_that_json_has_not_are_refused():
    with pytest.raises(ValueError):
        api.encoded({"a": float("nan")})
