"""The style sheets: contrast in both schemes, no name that is not there, no rule that nothing uses."""

from __future__ import annotations

import re

import pytest

from telos.judge.results import read_results
from telos.site.charts import badge
from telos.site.content import VERDICTS, Library
from telos.site.jobs import Job, claim_scales
from telos.site.render import STATIC, Live, Site

SHEETS = {name: re.sub(r"/\*.*?\*/", "", (STATIC / name).read_text(), flags=re.S)
          for name in ("site.css", "paper.css", "charts.css")}  # fmt: skip
SCRIPTS = {file.name: file.read_text() for file in STATIC.glob("*.js")}
PAIRS = {name: (light, dark) for name, light, dark in
         re.findall(r"--(\w+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", SHEETS["site.css"])}  # fmt: skip
TEXT = ("ink", "muted", "accent", "good", "bad", "open", "info")
SERIES = tuple(f"c{i}" for i in range(8))


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_by_known_values():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#ffffff", "#767676") == pytest.approx(4.54, abs=0.01)
    assert contrast("#777777", "#777777") == 1


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast_is_enough(scheme: int):
    of = {name: pair[scheme] for name, pair in PAIRS.items()}
    assert {"paper", "surface", "line", "strong", "marked", *TEXT, *SERIES} == set(of)
    found = {}
    for ground in ("paper", "surface"):
        found |= {(name, ground): (contrast(of[name], of[ground]), 4.5) for name in TEXT}
        found |= {(name, ground): (contrast(of[name], of[ground]), 3.0) for name in ("strong", *SERIES)}
    # On a marked line of source stand the colours of code too; a chosen filter is paper on ink.
    found |= {(name, "marked"): (contrast(of[name], of["marked"]), 4.5) for name in TEXT}
    found["paper", "ink"] = contrast(of["paper"], of["ink"]), 4.5
    assert {key: value for key, value in found.items() if value[0] < value[1]} == {}


def test_badges_can_be_read():
    for word in VERDICTS:
        fills = re.findall(r'fill="(#[0-9a-f]{6})"', badge("telos", word))
        assert len(fills) == 3 and all(contrast(fill, fills[2]) >= 4.5 for fill in fills[:2]), word


def test_variables_are_defined():
    defined = set(re.findall(r"(--[\w-]+):", SHEETS["site.css"]))
    for name, sheet in SHEETS.items():
        assert set(re.findall(r"var\((--[\w-]+)", sheet)) <= defined, name
    used = set(re.findall(r"var\((--[\w-]+)", " ".join(SHEETS.values())))
    assert defined - used == set(), "variables that nothing uses"


def test_nothing_is_fetched_and_braces_match():
    for name, sheet in SHEETS.items():
        assert sheet.count("{") == sheet.count("}"), name
        addresses = re.findall(r"url\(\"?([^\")]+)", sheet)
        assert all((STATIC / address).is_file() for address in addresses), name
        assert "@import" not in sheet and "expression(" not in sheet and "!ie" not in sheet


def classes_of_pages() -> set[str]:
    """Every class on a page, in each of the states that a page has."""
    library = Library()
    live = Site(library, Live("token", True, claim_scales))
    made = [make() for path, make in live.pages.items() if not path.startswith("source/") or path == "source/dpo"]
    jobs = [Job("dpo.laptop.full", "dpo", "laptop", "full", "running", "2026-01-01T00:00:00+00:00")]
    made.append(live.page("runs", "runs.html", jobs=jobs, here="runs"))
    made.append(live.error("x", 404, "Nothing", "here"))
    result = read_results()["dpo", "laptop"]
    shown = {"job": jobs[0], "result": result, "recorded": None, "here": "run"}
    made.append(live.page("papers/dpo", "run_view.html", **shown))
    found = {each for page in made for value in re.findall(r' class="([^"]*)"', page) for each in value.split()}
    # Words that no result has today, and what a page's script gives.
    found |= {word.replace(" ", "-") for word in VERDICTS} | {"d3"}
    added = re.findall(r"classList\.(?:add|toggle)\(\"([\w-]+)\"|className: \"([\w -]+)\"", " ".join(SCRIPTS.values()))
    return found | {each for pair in added for each in " ".join(pair).split()}


def selectors(sheet: str) -> set[str]:
    """The classes that a sheet's selectors name."""
    before = re.findall(r"([^{}]+)\{", sheet)
    return {each for selector in before if not selector.strip().startswith("@font") for each in
            re.findall(r"\.(-?[a-zA-Z][\w-]*)", selector)}  # fmt: skip


HOOKS = {"defaults", "label", "d0"}
"""Classes for scripts and tests alone, and of a chart's lines that look as all others do."""


def test_classes_and_rules_match():
    # Of the highlighter's classes only some have a colour, and no page has all of those.
    used = {each for each in classes_of_pages() if not each.startswith("py-")}
    known = {each for sheet in SHEETS.values() for each in selectors(sheet) if not each.startswith("py-")}
    assert known - used == set(), "rules that nothing uses"
    assert used - known == HOOKS, "classes that no rule knows"


def test_ids_that_the_sheets_and_scripts_name_exist():
    site = Site(Library(), Live("token", True, claim_scales))
    pages = "".join(site.pages[path]() for path in ("", "papers/prdc", "compare/offline_rl"))
    ids = set(re.findall(r' id="([^"]+)"', pages))
    named = {each for sheet in SHEETS.values() for part in re.findall(r"([^{}]+)\{", sheet) for each in
             re.findall(r"#([a-z][\w-]*)", part)}  # fmt: skip
    named |= {each for script in SCRIPTS.values() for each in re.findall(r'getElementById\("([\w-]+)"\)', script)}
    assert len(named) > 10 and named - ids == set()
