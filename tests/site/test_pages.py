"""Every page: valid, accessible in form, linked, escaped, and saying what the files say."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import Element

import html5lib
import pytest

from telos import catalogue
from telos.core.registry import PACKAGE, entries, planned
from telos.judge.results import read_results
from telos.site import content, render
from telos.site.content import Library, bounds, cost, distance, needs, source
from telos.site.equations import mathml
from telos.site.jobs import Job, claim_scales
from telos.site.render import POLICY, Live, Site

RESULTS = read_results()
LIBRARY = Library()
STATIC = Site(LIBRARY)
LIVE = Site(LIBRARY, Live("a-token", True, claim_scales))
MEASURED = sorted({slug for slug, _ in RESULTS if slug in LIBRARY.rows})
PAPERS = [row["slug"] for row in LIBRARY.papers]
READ = ("prdc", "dpo")
"""Papers whose sources' pages are parsed."""
each_measured = pytest.mark.parametrize("slug", MEASURED)

HOSTILE = "</td><script>alert('x')</script> \"quoted\" & 'single' {{ 7 * 7 }} {% endblock %} " + "W" * 400


def parse(page: str) -> Element:
    """The page's elements, after the strict parser has found no error in it."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page)


class Tree:
    """A page as elements, with what tests ask of it."""

    def __init__(self, page: str):
        self.page, self.root = page, parse(page)

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """Elements of that tag; a class matches where it is one of the element's."""
        kind = attributes.pop("kind", None)
        found = [each for each in self.root.iter(tag) if all(each.get(k) == v for k, v in attributes.items())]
        return [each for each in found if kind is None or kind in each.get("class", "").split()]

    def one(self, tag: str, **attributes: str) -> Element:
        found = self.all(tag, **attributes)
        assert len(found) == 1, (tag, attributes, len(found))
        return found[0]


def text(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def tags(element: Element) -> Iterator[tuple[str, Element]]:
    for each in element.iter():
        if isinstance(each.tag, str):
            yield each.tag.split("}")[-1], each


@pytest.fixture(scope="module")
def trees() -> dict[str, Tree]:
    """Every static page by its path; of those that are a source file, which are large and all alike, two papers'."""
    wanted = [
        path for path in STATIC.pages if not path.startswith("source/") or path.split("/")[1].split("-")[0] in READ
    ]
    return {path: Tree(STATIC.pages[path]()) for path in wanted}


@pytest.fixture(scope="module")
def live_trees() -> dict[str, Tree]:
    """The server's pages, as far as they differ from the static ones."""
    wanted = ["", "about", "compare", *(f"compare/{f}" for f in LIBRARY.families), *(f"papers/{s}" for s in READ)]
    found = {path: Tree(LIVE.pages[path]()) for path in wanted}
    found["runs"] = Tree(LIVE.page("runs", "runs.html", jobs=[job("running"), job("failed", HOSTILE)], here="runs"))
    found["a/b/c"] = Tree(LIVE.error("a/b/c", 404, "Nothing here", HOSTILE))
    return found


def job(state: Any, message: str = "", mode: Any = "quick", slug: str = "dpo") -> Job:
    return Job(f"{slug}.laptop.{mode}", slug, "laptop", mode, state, "2026-01-01T00:00:00+00:00", message=message)


def sound(path: str, tree: Tree) -> None:
    """What every page keeps."""
    levels = [int(tag[1]) for tag, _ in tags(tree.root) if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1 and levels[0] == 1, path
    assert all(after <= before + 1 for before, after in pairwise(levels)), (path, levels)
    ids = [each.get("id") for _, each in tags(tree.root) if each.get("id") is not None]
    assert len(ids) == len(set(ids)) and all(id and not re.search(r"\s", id) for id in ids), path
    for tag, each in tags(tree.root):
        assert tag != "style" and (tag != "script" or (each.get("src") and not each.text)), path
        for name, value in each.attrib.items():
            assert name != "style" and not name.startswith("on"), (path, tag, name)
            if name in ("src", "srcset", "data", "poster", "action", "formaction"):
                assert not re.match(r"\s*(\w+:|//)", value), (path, tag, value)
            if name.endswith("href") and re.match(r"\s*(\w+:|//)", value):
                assert tag == "a" and value.startswith("https://arxiv.org/abs/"), (path, value)
        if tag == "img":
            assert each.get("alt"), path
        if tag in ("a", "button", "th", "summary", "h1", "h2", "h3", "caption", "dt"):
            assert text(each) or any(name == "img" for name, _ in tags(each)), (path, tag)
    labelled = {each.get("for") for each in tree.all("label")} | {
        inner.get("id") for each in tree.all("label") for _, inner in tags(each)
    }
    for tag, each in tags(tree.root):
        if tag in ("input", "select") and each.get("type") not in ("hidden", "checkbox", "radio"):
            assert each.get("id") in labelled, (path, each.attrib)
    html = tree.one("html")
    assert html.get("lang") == "en" and text(tree.one("title")) and len(tree.all("main")) == 1, path
    assert not re.search(r"\bNone\b|\bnan\b|\binf\b|\bUndefined\b|<\w+ object|\{%", visible(tree)), path


def visible(tree: Tree) -> str:
    """The words of a page, without code, sources' documentation and what hostile values brought."""
    body = tree.one("body")
    words = []

    def walk(element: Element) -> None:
        documentation = element.get("class") in ("options", "definitions")
        if isinstance(element.tag, str) and element.tag not in ("code", "pre", "noscript") and not documentation:
            words.append(element.text or "")
            for child in element:
                walk(child)
                words.append(child.tail or "")

    walk(body)
    return re.sub(r"{% endblock %}", "", " ".join(words))


def test_every_page_is_sound(trees: dict[str, Tree], live_trees: dict[str, Tree]):
    assert len(trees) > 80 and set(STATIC.pages) == set(LIVE.pages)
    for path, tree in [*trees.items(), *live_trees.items()]:
        sound(path, tree)
    for path, tree in trees.items():
        policy = tree.one("meta", **{"http-equiv": "Content-Security-Policy"})
        assert policy.get("content") == POLICY and not tree.all("form", method="post"), path
        assert "a-token" not in tree.page and not any("run.js" in each.get("src", "") for each in tree.all("script"))


def test_the_strict_parser_is_strict():
    with pytest.raises(html5lib.html5parser.ParseError):
        parse("<!doctype html><title>x</title><p><div></p>")
    tree = Tree("<!doctype html><html lang=en><title>x</title><main><h1>a</h1><h3>b</h3></main></html>")
    with pytest.raises(AssertionError):
        sound("", tree)


def resolved(site: Site, path: str, address: str) -> tuple[str, str]:
    """The file or page that a link means, and its anchor."""
    parts = urlsplit(address)
    if not parts.path:
        return path, parts.fragment
    joined = posixpath.normpath(posixpath.join("/", posixpath.dirname(path), unquote(parts.path))).lstrip("/")
    return joined, parts.fragment


@pytest.mark.parametrize("live", [False, True])
def test_every_link_leads_somewhere(live: bool, trees: dict[str, Tree], live_trees: dict[str, Tree]):
    site, found = (LIVE, trees | live_trees) if live else (STATIC, trees)
    pages = {site.link(path).removeprefix("./"): tree for path, tree in found.items()}
    ids = {path: {each.get("id") for _, each in tags(tree.root)} for path, tree in pages.items()}
    for path, make in site.pages.items():
        if site.link(path) not in ids and path:
            ids[site.link(path)] = set(re.findall(r' id="([^"]+)"', make()))
    actions = {"runs", "runs/dpo.laptop.quick/cancel"}
    checked = 0
    for path, tree in pages.items() if not live else ((p, pages[p]) for p in live_trees if p != ""):
        for tag, each in tags(tree.root):
            for name in ("href", "src", "action"):
                address = each.get(name)
                if address is None or address.startswith("https://"):
                    continue
                target, anchor = resolved(site, path, address)
                assert target in ids or target in site.files or (tag == "form" and target in actions), (path, address)
                assert not anchor or anchor in ids[target], (path, address)
                checked += 1
    assert checked > 300


def test_the_feed_shows_every_paper(trees: dict[str, Tree]):
    cards = trees[""].all("li", kind="card")
    assert len(cards) == len(PAPERS) == 68 and {each.get("data-slug") for each in cards} == set(PAPERS)
    assert set(planned()) <= set(PAPERS)
    for card in cards:
        row = LIBRARY.card(LIBRARY.rows[card.get("data-slug", "")])
        said = text(card)
        for value in (row["method"], row["title"], str(row["year"]), row["summary"], row["claim"]):
            assert " ".join(value.split()) in said
        for word in row["words"]:
            assert [text(each) for _, each in tags(card) if word.replace(" ", "-") in each.get("class", "").split()]
        assert (row["headline"] is not None) == ("svg" in [tag for tag, _ in tags(card)])
    for word, count in LIBRARY.tally.items():
        assert text(trees[""].one("label", kind=word.replace(" ", "-"))) == f"{word} {count}"
    # Those with a verdict first, and among equals the newest.
    unmeasured = ("planned", "no verdict")
    ranks = [LIBRARY.rows[card.get("data-slug", "")]["verdict"] in unmeasured for card in cards]
    assert ranks == sorted(ranks)
    years = [LIBRARY.rows[card.get("data-slug", "")]["year"] for card in cards]
    assert years[ranks.index(True) :] == sorted(years[ranks.index(True) :], reverse=True)


def test_a_planned_paper_has_a_page(trees: dict[str, Tree]):
    for slug in PAPERS:
        row = LIBRARY.rows[slug]
        if not row["available"]:
            said = text(trees[f"papers/{slug}"].one("main"))
            assert all(" ".join(row[key].split()) in said for key in ("method", "title", "summary", "claim", "data"))
            assert "The method is planned." in said and "Run it here" not in said and "Source" not in said
            assert trees[f"papers/{slug}"].one("a", rel="noreferrer").get("href") == row["url"]


def section(tree: Tree, id: str) -> str:
    return text(tree.one("section", id=id))


@each_measured
def test_a_papers_page_says_it_all(slug: str, trees: dict[str, Tree]):
    tree, page = trees[f"papers/{slug}"], LIBRARY.page(slug)
    claim = section(tree, "claim")
    for key in ("where", "text", "value", "data", "model", "mechanism"):
        assert page["paper_claim"][key] and " ".join(page["paper_claim"][key].split()) in claim, key
    for scale, result in page["results"].items():
        found = section(tree, scale)
        words = [result["claim"][key] for key in ("statement", "source", "world")]
        assert all(" ".join(each.split()) in claim for each in words)
        words = [result["claim"]["refuted_if"], *result["claim"]["notes"], *(p["text"] for p in result["parts"])]
        words += [arm["label"] for arm in result["arms"].values()]
        words += [result["date"][:10], f"{len(result['seeds'])} seeds", result["machine"]["cpu"]]
        words += [f"commit {result['git']['commit'][:12]}"]
        words += [f"{name} {version}" for name, version in result["versions"].items()]
        assert [each for each in words if " ".join(each.split()) not in found] == []
        for stated in (part["part"] for part in result["parts"]):
            for bound in bounds(stated) if stated["kind"] != "Holds" else []:
                assert f"{abs(bound):.4g}" in found
        assert tree.one("a", href=f"../results/{slug}.{scale}.json") is not None
    assert [each for each in page["equations"] if mathml(each) not in tree.page] == []
    if page["equations"]:
        assert section(tree, "equations") and len(tree.all("div", kind="equation")) == len(page["equations"])
    for name, options in page["options"].items():
        assert name in section(tree, "options")
        for option in options:
            assert all(" ".join(option[key].split()) in section(tree, "options") for key in ("name", "default", "doc"))
            assert option["doc"], f"{name}.{option['name']} has no source"
    for key in ("deviations", "traps"):
        assert page[key] and all(" ".join(each.split()) in section(tree, key) for each in page[key])
    shown = "".join("".join(each.itertext()) for each in tree.one("section", id="use").iter("pre"))
    assert page["usage"] and all(line in shown for line in page["usage"])
    if page["at_scale"]:
        scaled = section(tree, "at-scale")
        assert "not run by us" in scaled and " ".join(page["at_scale"].split()) in scaled
    assert f"telos check {slug}" in section(tree, "run")
    listed = [(each.get("href", "")[1:], text(each)) for each in tree.one("nav", kind="toc").iter("a")]
    assert [id for id, _ in listed] == [each.get("id") for each in tree.all("section")]


NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"


def close(shown: str, value: float) -> bool:
    """Whether a number on a page is the recorded one, to the digits shown."""
    return abs(float(shown) - value) <= 0.00051 * abs(value) + 1e-12


@each_measured
def test_numbers_are_those_of_the_result_file(slug: str, trees: dict[str, Tree]):
    for scale in LIBRARY.scales(slug):
        result = RESULTS[slug, scale]
        found = trees[f"papers/{slug}"].one("section", id=scale)
        tables = list(found.iter("table"))
        rows = [[text(cell) for cell in row] for row in tables[0].iter("tr")][1:]
        assert len(rows) == len(result["parts"])
        for (name, status, measured, _), part in zip(rows, result["parts"]):
            assert (name, status) == (" ".join(part["text"].split()), part["status"])
            shown = re.findall(NUMBER, measured)
            if part["interval"]:
                values = [part["interval"][key] for key in ("estimate", "low", "high")]
                assert len(shown) == 3 and all(map(close, shown, values)), (name, measured)
            else:
                assert measured == f"{sum(value == 1 for value in part['values'])} of {part['seeds']} seeds"
        head, *rows = [[text(cell) for cell in row] for row in tables[1].iter("tr")]
        assert [row[0] for row in rows] == [" ".join(result["arms"][name]["label"].split()) for name in result["order"]]
        for name, row in zip(result["order"], rows):
            for metric, cell in zip(head[1:-1], row[1:-1]):
                summary = result["arms"][name]["summary"].get(metric)
                values = [summary["mean"]] if summary else []
                if summary and summary["interval"]:
                    values += [summary["interval"]["low"], summary["interval"]["high"]]
                shown = re.findall(NUMBER, cell)
                assert len(shown) == len(values) and all(map(close, shown, values)), (name, metric, cell)


def test_links_into_the_source_point_at_the_definitions(trees: dict[str, Tree]):
    checked = 0
    decorated = r"(@[^\n]+\n)*"
    for slug in [*PAPERS, *(row["slug"] for row in LIBRARY.baselines)]:
        files = {each["page"]: each["text"].split("\n") for each in LIBRARY.page(slug)["source"]}
        for link in trees[f"papers/{slug}"].all("a"):
            target = re.fullmatch(r"\.\./source/([\w-]+)\.html#L(\d+)", link.get("href", ""))
            if target is None:
                continue
            here = "\n".join(files[target[1]][int(target[2]) - 1 :][:4])
            name = re.escape(text(link))
            assert re.match(rf"{decorated}(class|def) {name}\b|\s*{name}( =|:)", here), (slug, here)
            checked += 1
    assert checked > 200


def test_a_source_page_shows_the_file_line_by_line(trees: dict[str, Tree]):
    for slug in READ:
        for each in source(entries()[slug]):
            rows = [*trees[f"source/{each['page']}"].one("tbody").iter("tr")]
            shown = ["".join(row[1].itertext()) for row in rows]
            assert shown == (PACKAGE.parent.parent / each["path"]).read_text().rstrip("\n").split("\n")
            assert [row.get("id") for row in rows] == [f"L{line}" for line in range(1, len(rows) + 1)]


COMMON = {"doc": "the documentation of an option"}
"""Slugs that are also words of any site."""


def test_no_file_of_the_site_knows_a_paper():
    files = [*(PACKAGE / "site").rglob("*"), *(PACKAGE / "cli" / f"{verb}.py" for verb in ("serve", "site", "digest"))]
    texts = {f.name: f.read_text() for f in files if f.is_file() and f.suffix not in (".woff2", ".pyc")}
    assert len(texts) > 25
    known = {slug for slug in LIBRARY.rows if slug not in COMMON} | {row["method"] for row in LIBRARY.rows.values()}
    assert len(known) > 140
    words = re.compile(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, sorted(known, key=len, reverse=True)))})(?![\w-])")
    named = {(name, word) for name, said in texts.items() for word in words.findall(said)}
    assert named == EXAMPLES


EXAMPLES = {("jobs.py", "dpo")}
"""An error's example of a job's id."""


# --- what a hostile result can do ------------------------------------------------------------------------------------


def changed(slug: str = "prdc", **claim: Any) -> dict[str, Any]:
    result = deepcopy(RESULTS[slug, "laptop"])
    result["claim"] |= claim
    return result


def hostile() -> dict[str, Any]:
    """A real result in which every word that a claim may choose is as bad as can be."""
    result = changed(statement=HOSTILE, world=HOSTILE, source=HOSTILE, refuted_if=HOSTILE, notes=[HOSTILE, HOSTILE])
    result |= {"machine": {"cpu": HOSTILE, "cores": HOSTILE}, "versions": {HOSTILE: HOSTILE}, "history": []}
    result["git"] = {"commit": "<script>" + "f" * 40, "dirty": [HOSTILE]}

    def renamed(values: dict[str, Any]) -> dict[str, Any]:
        return {HOSTILE + name: value for name, value in values.items()}

    result["judged"] = [HOSTILE + name for name in result["judged"]]
    result["claim"]["metrics"] = {HOSTILE + name: HOSTILE for name in result["claim"]["metrics"]}
    for part in result["parts"]:
        part["text"] = HOSTILE
        part["part"] = {
            key: HOSTILE + value if key in ("a", "b", "metric") and value else value
            for key, value in part["part"].items()
        }
    for arm in result["arms"].values():
        arm |= {"label": HOSTILE, "group": arm["group"] and HOSTILE + arm["group"], "options": {HOSTILE: [HOSTILE]}}
        arm["summary"] = renamed(arm["summary"])
        for run in arm["runs"]:
            run["measures"] = renamed(run["measures"])
            run["points"] = [{k if k == "step" else HOSTILE + k: v for k, v in p.items()} for p in run["points"]]
    result["arms"], result["order"] = renamed(result["arms"]), [HOSTILE + name for name in result["order"]]
    return result


def views(result: dict[str, Any], slug: str = "prdc") -> dict[str, Tree]:
    """Every page that shows the result of a paper, parsed."""
    library = Library(results={(slug, "laptop"): result}, pictures={})
    found = {}
    for site in (Site(library), Site(library, Live("token", True, claim_scales))):
        for path in ("", f"papers/{slug}", f"compare/{library.rows[slug]['family']}", "about"):
            found[f"{path}{site.live is not None}"] = Tree(site.pages[path]())
    for mode in ("quick", "full"):
        shown = {"job": job("done", mode=mode, slug=slug), "result": result, "here": "run"}
        for recorded in (None, {part["text"]: part for part in result["parts"]}):
            view = site.page(f"papers/{slug}", "run_view.html", recorded=recorded, **shown)
            # The fragment stands inside of a page that has its own h1 and h2.
            whole = f"<!doctype html><html lang=en><head><title>x</title></head><body><main><h1>x</h1><h2>y</h2>{view}"
            found[f"{mode}{recorded is None}"] = Tree(f"{whole}</main></body></html>")
    for make in (site.files["api/papers.json"], site.files[f"papers/{slug}.json"], site.files["atom.xml"]):
        assert make()
    return found


def test_hostile_words_stay_words():
    found = views(hostile())
    for path, tree in found.items():
        sound(path, tree)
        assert "<script>alert" not in tree.page and "</script> " not in tree.page, path
    page = found["papers/prdcFalse"]
    assert " ".join(HOSTILE.split()) in text(page.one("section", id="laptop"))
    assert text(page.one("section", id="claim")).count("{{ 7 * 7 }}") >= 3
    assert "alert" not in "".join(str(each.attrib) for each in page.all("script"))


def degenerate(kind: str) -> dict[str, Any]:
    result = changed()
    if kind == "no history, not stale said":
        for key in ("history", "stale", "stale_since", "fresh_since"):
            result.pop(key, None)
    elif kind == "stale":
        result |= {"stale": True, "stale_since": "2026-02-03T00:00:00+00:00"}
        result["history"] = [{"date": "2026-01-01T00:00:00+00:00", "verdict": "refuted", "commit": None}]
    elif kind == "no git":
        result["git"] = None
    elif kind == "one seed":
        result |= {"seeds": [0], "verdict": "indicative"}
        for part in result["parts"]:
            part |= {"interval": None, "values": part["values"][:1], "seeds": 1, "status": "not shown"}
        for arm in result["arms"].values():
            arm["runs"] = arm["runs"][:1]
            arm["summary"] = {name: each | {"interval": None} for name, each in arm["summary"].items()}
    elif kind == "no points":
        for arm in result["arms"].values():
            arm["runs"] = [run | {"points": []} for run in arm["runs"]]
    elif kind == "one arm without points":
        first = result["arms"][result["order"][0]]
        first["runs"] = [run | {"points": []} for run in first["runs"]]
    elif kind == "exact checks only":
        stated = {"kind": "Holds", "a": result["order"][0], "metric": result["judged"][0], "b": None}
        made = {
            "interval": None,
            "part": stated,
            "status": "confirmed",
            "text": "it holds",
            "seeds": len(result["seeds"]),
        }
        result["parts"] = [made | {"values": [1.0] * len(result["seeds"])}]
    elif kind == "no metrics":
        result |= {"judged": [], "parts": []}
        result["claim"] |= {"metrics": {}, "parts": [], "notes": []}
        for arm in result["arms"].values():
            arm |= {"summary": {}, "runs": [run | {"measures": {}, "points": []} for run in arm["runs"]]}
    elif kind == "huge and tiny numbers":
        for index, part in enumerate(result["parts"]):
            if part["interval"]:
                part["interval"] |= {"estimate": 1e300, "low": -1e300, "high": 1e-300 * index}
    return result


KINDS = ["no history, not stale said", "stale", "no git", "one seed", "no points", "one arm without points",
         "exact checks only", "no metrics", "huge and tiny numbers"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_results_have_pages(kind: str):
    result = degenerate(kind)
    found = views(result)
    for path, tree in found.items():
        sound(path, tree)
    page, card = found["papers/prdcFalse"], found["False"]
    said = text(page.one("section", id="laptop"))
    if kind == "stale":
        assert f"It was {result['verdict']} when it was measured." in said and "before: refuted on 2026-01-01" in said
        assert [text(each) for each in card.all("label", kind="stale")] == ["stale 1"]
    if kind == "no git":
        assert "commit unknown" in said
    if kind == "one seed":
        assert "Seeds1" in text(page.one("section", id="claim"))
        assert "[" not in text([*page.one("section", id="laptop").iter("tbody")][1])
    if kind in ("exact checks only", "no metrics"):
        assert "exact checks" in text(page.one("section", id="claim"))
    if kind == "exact checks only":
        seeds = len(result["seeds"])
        assert f"{seeds} of {seeds} seeds" in said


def test_a_claim_that_is_not_measured_has_a_page():
    library = Library(results={}, pictures={})
    for site in (Site(library), Site(library, Live("token", True, claim_scales))):
        for slug in MEASURED:
            tree = Tree(site.pages[f"papers/{slug}"]())
            sound(slug, tree)
            assert "The claim has not been measured yet." in text(tree.one("section", id="claim"))
            assert text(tree.one("p", kind="chiprow")) == "no verdict"


def test_a_jobs_message_is_escaped():
    page = LIVE.page("runs", "runs.html", jobs=[job("failed", HOSTILE)], here="runs")
    view = LIVE.page("papers/dpo", "run_view.html", job=job("failed", HOSTILE), result=None, recorded=None, here="run")
    for made in (page, view):
        assert "&lt;script&gt;alert(&#39;x&#39;)" in made and "<script>alert" not in made and "{{ 7 * 7 }}" in made


def test_only_a_server_that_allows_it_shows_what_starts_checks():
    slug = MEASURED[0]
    page = Tree(LIVE.pages[f"papers/{slug}"]())
    forms = page.all("form", method="post")
    assert [form.get("action") for form in forms] == ["../runs"] * len(claim_scales(slug))
    for form, scale in zip(forms, claim_scales(slug)):
        values = {each.get("name"): each.get("value") for each in form.iter("input")}
        assert values == {"token": "a-token", "slug": slug, "scale": scale}
        assert [each.get("value") for each in form.iter("button")] == ["quick", "full"]
    closed = Site(LIBRARY, Live("a-token", False, claim_scales)).pages[f"papers/{slug}"]()
    assert "cannot be started from the page" in closed and "a-token" not in closed and "<form" not in closed


# --- what the pages are made of --------------------------------------------------------------------------------------


def stated(estimate: float, low: float, high: float, **part: Any) -> dict[str, Any]:
    return {"part": part, "interval": {"estimate": estimate, "low": low, "high": high}}


def test_distance_is_in_half_widths_beyond_the_bound():
    better = {"kind": "Better", "margin": 1.0}
    assert distance(stated(3, 2, 4, **better)) == 2  # 3 - 1, over 1
    assert distance(stated(2, 1, 3, **better)) == 1  # the interval just clears
    assert distance(stated(1, 0, 2, **better)) == 0
    assert distance(stated(0, -0.5, 0.5, **better)) == -2
    assert distance(stated(3, 3, 3, **better)) == 99 and distance(stated(0, 0, 0, **better)) == -99
    assert distance(stated(1e6, 1e6 - 1, 1e6 + 1, **better)) == 99
    within = {"kind": "Within", "tolerance": 2.0}
    assert distance(stated(0, -1, 1, **within)) == 2
    assert distance(stated(-3, -3.5, -2.5, **within)) == distance(stated(3, 2.5, 3.5, **within)) == -2
    above = {"kind": "Threshold", "at_least": 0.5, "at_most": None}
    below = {"kind": "Threshold", "at_least": None, "at_most": 0.5}
    both = {"kind": "Threshold", "at_least": 0.0, "at_most": 1.0}
    assert distance(stated(0.75, 0.5, 1.0, **above)) == 1 and distance(stated(0.75, 0.5, 1.0, **below)) == -1
    assert distance(stated(0.75, 0.5, 1.0, **both)) == 1  # 0.25 to the nearer bound


def test_bounds():
    assert bounds({"kind": "Better", "margin": 0.1}) == [0.1]
    assert bounds({"kind": "Within", "tolerance": 0.1}) == [-0.1, 0.1]
    assert bounds({"kind": "Threshold", "at_least": None, "at_most": 3}) == [3]
    assert bounds({"kind": "Threshold", "at_least": 0, "at_most": 3}) == [0, 3]


def test_cost_and_needs():
    seconds = (0, 60, 60.1, 300, 301, 600, 600.1, 1e6)
    assert [cost(s) for s in seconds] == ["1", "1", "5", "5", "10", "10", "more", "more"]
    assert needs("preference pairs over responses") == ["preferences", "texts"]
    assert needs("Expert DEMONSTRATIONS, images") == ["demonstrations", "images"]
    assert needs("logs") == ["logged decisions"] and needs("something else") == ["other"]
    assert needs("logistic") == ["other"], "a word that only begins like log"


def test_durations():
    shown = [render.seconds(s) for s in (0.4, 89.4, 90, 600, 5399, 5400, 86400)]
    assert shown == ["0 s", "89 s", "2 min", "10 min", "90 min", "1.5 h", "24.0 h"]


def with_parts(slug: str, verdict: str, intervals: int, exact: int) -> tuple[tuple[str, str], dict[str, Any]]:
    """A result with so many parts that have an interval, and so many that have none."""
    result = changed()
    some = next(part for part in result["parts"] if part["interval"])
    result["parts"] = [some] * intervals + [some | {"interval": None}] * exact
    result |= {"verdict": verdict, "slug": slug, "stale": False}
    return (slug, "laptop"), result


def test_false_verdicts_counted_by_hand():
    results = dict([
        with_parts("prdc", "confirmed", 2, 0), with_parts("dpo", "refuted", 1, 3),
        with_parts("beso", "not shown", 50, 0), with_parts("deal", "confirmed", 0, 4),
        with_parts("p3o", "indicative", 5, 0),
    ])  # fmt: skip
    odds = Library(results=results, pictures={}).false_verdicts
    # Four are judged, 2 + 1 + 50 + 0 parts; three claims have an interval; 50 parts refute one claim at most.
    assert odds["claims"] == 4 and odds["parts"] == 53
    assert odds["confirmed"] == pytest.approx(3 * 0.025)
    assert odds["refuted"] == pytest.approx(0.05 + 0.025 + 1.0)
    stale = {key: result | {"stale": True} for key, result in results.items()}
    assert Library(results=stale, pictures={}).false_verdicts == {"claims": 0, "parts": 0, "confirmed": 0, "refuted": 0}


def test_tally_and_facets():
    results = dict([with_parts("prdc", "confirmed", 2, 0), with_parts("dpo", "refuted", 1, 3)])
    results["prdc", "standard"] = results["prdc", "laptop"] | {"verdict": "not shown", "scale": "standard"}
    results["dpo", "standard"] = results["dpo", "laptop"] | {"scale": "standard"}
    library = Library(results=results, pictures={})
    tally = library.tally
    # A paper with two verdicts counts for both, one with the same twice once.
    assert (tally["confirmed"], tally["not shown"], tally["refuted"]) == (1, 1, 1)
    available = [row["slug"] for row in library.papers if row["available"]]
    assert tally["no verdict"] == len(available) - 2 and tally["planned"] == 68 - len(available)
    assert sum(tally.values()) == 68 + 1 and "stale" not in tally
    assert Library(results={}, pictures={}).tally["refuted"] == 0
    facets = library.facets
    assert sum(facets["family"].values()) == sum(facets["product"].values()) == 68
    assert all(sum(facets[name].values()) >= 68 for name in ("purpose", "data"))
    minutes = results["prdc", "laptop"]["wall_seconds"]
    assert facets["cost"] == {cost(minutes): 2}
    for name, values in facets.items():
        for value, count in values.items():
            key = {"data": "needs"}.get(name, name)
            found = [card for card in library.cards if value == card[key] or value in (card[key] or [])]
            assert len(found) == count
    assert library.scales("prdc") == ["laptop", "standard"] and library.scales("beso") == []
    assert library.card(library.rows["prdc"])["words"] == ["confirmed", "not shown"]


def test_definitions_and_their_lines():
    code = '"""Doc."""\n\nA = 1\nB: int = 2\nC, D = 1, 2\n\n\n'
    code += '@wrap\n@wrap2(1)\nclass E:\n    """One\n    line.\n\n    More."""\n\n\ndef f(): ...\n'
    found = [(each["name"], each["kind"], each["line"], each["doc"]) for each in content.definitions(code)]
    assert found == [
        ("A", "value", 3, ""), ("B", "value", 4, ""), ("E", "class", 8, "One line."), ("f", "function", 17, ""),
    ]  # fmt: skip


def test_what_a_family_measured_together_stands_on_its_page_and_in_the_changes():
    # The newest of all: the page tells of the last thirty changes.
    own = {"slug": "preferences", "scale": "standard", "date": "2099-01-01T00:00:00Z", "history": []}
    result = deepcopy(RESULTS["dpo", "laptop"]) | own
    library = Library(results=dict(RESULTS) | {("preferences", "standard"): result}, pictures={})
    site = Site(library)
    tree = Tree(site.pages["compare/preferences"]())
    section = tree.one("section", id="standard")
    assert result["claim"]["statement"] in text(section) and text(tree.all("h2")[0]).endswith(result["verdict"])
    assert len([*section.iter("tr")]) > len(result["parts"]) + len(result["order"])
    assert [a.get("href") for a in tree.all("a") if text(a) == "measured together"] == ["#standard"]
    assert 'href="compare/preferences.html">preferences</a>' in site.pages["about"]()
    assert not Tree(Site(Library(results={}, pictures={})).pages["compare/preferences"]()).all("section", id="standard")


def test_compared_methods_stand_in_the_table():
    family = "offline_rl"
    slugs = LIBRARY.families[family]
    tree = Tree(LIVE.compared(family, ",".join(slugs[-2:])))
    head = [(each.get("data-method"), each.get("hidden") is None) for each in tree.all("th", scope="col")][1:]
    assert head == [(slug, slug in slugs[-2:]) for slug in slugs]
    ticked = [each.get("value") for each in tree.all("input", type="checkbox") if each.get("checked") is not None]
    assert ticked == slugs[-2:]
    with pytest.raises(catalogue.TelosError, match="cannot be compared"):
        LIVE.compared(family, "dpo")
    with pytest.raises(catalogue.TelosError, match="up to 6"):
        LIVE.compared("language_rl", ",".join(f"x{i}" for i in range(7)))


def test_json_that_pages_link_to_is_the_recorded_file():
    for slug, scale in RESULTS:
        made = json.loads(STATIC.files[f"results/{slug}.{scale}.json"]())
        assert made == RESULTS[slug, scale]
    for slug, scale in LIBRARY.pictures:
        assert STATIC.files[f"results/{slug}.{scale}.png"]().startswith(b"\x89PNG")
    for row in LIBRARY.papers:
        assert f": {row['verdict']}</title>".encode() in STATIC.files[f"badges/{row['slug']}.svg"]()
    assert Path(render.STATIC).is_dir()
