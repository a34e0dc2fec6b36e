"""The pages: paths and what stands at each, the same for the server and for static files."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

import telos
from telos import catalogue
from telos.core.errors import TelosError
from telos.core.registry import entries
from telos.judge.report import number, verdict_note
from telos.judge.results import Result, results_folder
from telos.site import api, charts, feeds
from telos.site.content import COSTS, VERDICTS, Library, source, source_files
from telos.site.equations import mathml

HERE = Path(__file__).resolve().parent
STATIC = HERE / "static"
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'"
)
"""Content security policy of every page; the server adds frame-ancestors, which a page cannot say of itself."""
MEDIA = {
    ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
    ".woff2": "font/woff2", ".png": "image/png", ".json": "application/json", ".xml": "application/atom+xml",
    ".txt": "text/plain; charset=utf-8",
}  # fmt: skip
HTML = "text/html; charset=utf-8"
COMPARED = (2, 6)
"""How many methods stand side by side: at least, at most."""

Make = Callable[[], bytes]


@dataclass(frozen=True)
class Live:
    """What only a server's pages have.

    Args:
        token: what a form must send back.
        runs_allowed: whether checks can be started from the pages.
        scales: the scales of a slug's claim.
    """

    token: str
    runs_allowed: bool
    scales: Callable[[str], Sequence[str]]


@dataclass
class Site:
    """Everything that can be asked for by path, made when it is asked for.

    Args:
        live: None for static files, whose links end with .html.
        base: address of the site, for what is read elsewhere (the feed); empty where it is not known.
    """

    library: Library
    live: Live | None = None
    base: str = ""
    pages: dict[str, Callable[[], str]] = field(init=False)
    files: dict[str, Make] = field(init=False)

    def __post_init__(self) -> None:
        rows = self.library.rows
        self.pages = {"": self.feed, "about": partial(self.page, "about", "about.html", here="about")}
        self.pages["compare"] = partial(self.page, "compare", "compare_index.html", here="compare")
        self.pages |= {f"papers/{slug}": partial(self.paper, slug) for slug in rows}
        self.pages |= {f"compare/{family}": partial(self.compare, family) for family in self.library.families}
        for slug in rows:
            for name in source_files(entries().get(slug)):
                self.pages[f"source/{name}"] = partial(self.source, slug, name)
        self.files = {f"static/{file.name}": file.read_bytes for file in sorted(STATIC.iterdir()) if file.is_file()}
        self.files["api/papers.json"] = lambda: api.papers(self.library)
        self.files["api/schema.json"] = api.SCHEMA.read_bytes
        self.files["atom.xml"] = lambda: feeds.atom(self.library, self.base, self.link)
        for slug in rows:
            self.files[f"papers/{slug}.json"] = partial(api.paper, self.library, slug)
        for row in self.library.papers:
            self.files[f"badges/{row['slug']}.svg"] = partial(badge, row["verdict"])
            for scale in self.library.scales(row["slug"]):
                self.files[f"badges/{row['slug']}.{scale}.svg"] = partial(badge, row["verdicts"][scale])
        folder = results_folder()
        for slug, scale in self.library.results:
            if folder is not None:
                self.files[f"results/{slug}.{scale}.json"] = (folder / f"{slug}.{scale}.json").read_bytes
        for (slug, scale), picture in self.library.pictures.items():
            self.files[f"results/{slug}.{scale}.png"] = picture.read_bytes

    def link(self, path: str, root: str = "") -> str:
        """The address of a page: as the server has it, or the name of its static file."""
        if self.live:
            return root + path if root + path else "./"
        return f"{root}{path or 'index'}.html"

    def page(self, path: str, template: str, **values: Any) -> str:
        """A template as HTML; `path` fixes how its relative links begin."""
        root = "../" * path.count("/")
        return ENVIRONMENT.get_template(template).render(
            url=lambda to: self.link(to, root),
            file=lambda to: root + to,
            asset=lambda name: f"{root}static/{name}",
            library=self.library, live=self.live is not None, policy=POLICY, version=telos.__version__,
            verdicts=VERDICTS, costs=COSTS, token=self.live.token if self.live else "",
            runs_allowed=self.live is not None and self.live.runs_allowed, **values,
        )  # fmt: skip

    def feed(self) -> str:
        return self.page("", "index.html", here="feed")

    def paper(self, slug: str) -> str:
        page = self.library.page(slug)
        sections = {
            "claim": ("The claim", page["claim"]), **{s: (f"Found: {s}", True) for s in page["results"]},
            "run": ("Run it here", page["has_claim"]), "equations": ("Equations", page["equations"]),
            "use": ("On your own data", page["usage"]), "at-scale": ("At the paper's scale", page["at_scale"]),
            "options": ("Hyper-parameters", page["options"]), "deviations": ("Deviations", page["deviations"]),
            "traps": ("Traps", page["traps"]), "source": ("Source", page["source"]),
            "cite": ("Badge and data", not page["baseline"]),
        }  # fmt: skip
        scales = list(self.live.scales(slug)) if self.live and page["has_claim"] else list(page["results"])
        commands = [f"telos check {slug} --quick", f"telos check {slug}"]
        commands += [f"telos check {slug} --scale {scale}" for scale in scales if scale != "laptop"]
        family = self.library.families.get(page["family"], [])
        neighbours = [slug, *(other for other in family if other != slug)][: COMPARED[0] + 1]
        return self.page(
            f"papers/{slug}", "paper.html", page=page, scales=scales, commands=commands, neighbours=neighbours,
            unmeasured="The claim has not been measured yet." if page["available"] else "The method is planned.",
            contents=[(key, name) for key, (name, there) in sections.items() if there], here="paper",
        )  # fmt: skip

    def compare(self, family: str, shown: Sequence[str] = ()) -> str:
        """The family's methods in one table; `shown` are the columns that are not hidden."""
        slugs = self.library.families[family]
        pages = [self.library.page(slug) for slug in slugs]
        headline = {page["slug"]: next(iter(page["options"].values()), []) for page in pages}
        defaults = {slug: {option["name"]: option for option in options} for slug, options in headline.items()}
        names = list(dict.fromkeys(name for options in defaults.values() for name in options))
        # Options that several methods have come first, where a reader can compare them.
        names.sort(key=lambda name: -sum(name in options for options in defaults.values()))
        return self.page(
            f"compare/{family}", "compare.html", family=family, pages=pages, names=names, defaults=defaults,
            shown=list(shown) or slugs[: COMPARED[0] + 1], together=self.library.together(family), here="compare",
        )  # fmt: skip

    def compared(self, family: str, asked: str) -> str:
        """The comparison of the methods in `asked`, slugs with commas between them.

        Raises:
            TelosError: a method that the family has not, or too many of them.
        """
        shown = list(dict.fromkeys(filter(None, asked.split(","))))
        known = self.library.families[family]
        if not set(shown) <= set(known) or len(shown) > COMPARED[1]:
            raise TelosError(
                "these methods cannot be compared",
                expected=f"up to {COMPARED[1]} of {', '.join(known)}",
                got=asked[:80],
            )
        return self.compare(family, shown)

    def source(self, slug: str, name: str) -> str:
        listing = next(each for each in source(entries().get(slug)) if each["page"] == name)
        return self.page(
            f"source/{name}", "source.html", slug=slug, method=self.library.rows[slug]["method"], source=listing,
            lines=highlighted(listing["text"]), here="source",
        )  # fmt: skip

    def error(self, path: str, status: int, title: str, detail: str) -> str:
        # A wrong path may have any depth: the links start at the server's root.
        return self.page(path, "error.html", status=status, title=title, detail=detail, here="error")


@functools.cache
def highlighted(text: str) -> list[Markup]:
    """The lines of a Python file, coloured by classes."""
    markup = highlight(text, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True, classprefix="py-"))
    return [Markup(line) for line in markup.rstrip("\n").split("\n")]


def badge(verdict: str) -> bytes:
    """A verdict for other people's READMEs."""
    return charts.badge("telos", verdict).encode()


def seconds(value: float) -> str:
    """A duration in words."""
    if value < 90:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"


def words(name: str) -> str:
    """A family's name as words."""
    return " ".join("RL" if word == "rl" else word for word in name.split("_"))


def title_case(text: str) -> str:
    """With a capital first; the rest stays."""
    return text[:1].upper() + text[1:]


def metrics(result: Result) -> list[str]:
    """The metrics of a result that some arm has, judged ones first."""
    named = dict.fromkeys([*result["judged"], *result["claim"]["metrics"]])
    return [metric for metric in named if any(metric in arm["summary"] for arm in result["arms"].values())]


def judged(result: Result) -> list[str]:
    """The metrics that parts judge, where an arm has them."""
    return [metric for metric in metrics(result) if metric in result["judged"]]


def options(value: Mapping[str, Any]) -> str:
    """An arm's options as text, methods by their name."""

    def shown(each: Any) -> str:
        if isinstance(each, Mapping) and "use" in each:
            return f"{each['use']}({options({k: v for k, v in each.items() if k != 'use'})})"
        return json.dumps(each)

    return ", ".join(f"{name}={shown(each)}" for name, each in value.items()) or "no options"


def is_shell(line: str) -> bool:
    """Whether a line of usage is a command; Python otherwise."""
    return line.startswith("telos ")


def shown_number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else number(value)


def environment() -> jinja2.Environment:
    """Templates with everything escaped, and an error for a name that is not given."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "number": shown_number, "short": "{:.2g}".format, "seconds": seconds, "words": words, "title_case": title_case,
        "metrics": metrics, "judged": judged, "options": options, "mathml": mathml,
        "effect_bar": lambda part: charts.effect_bar(part) or "",
        "dots": charts.dots, "plane": charts.plane, "curves": charts.curves,
        "verdict": catalogue.verdict,
        "verdict_note": lambda result: verdict_note(result).lstrip(": "),
    }  # fmt: skip
    made.tests |= {"shell": is_shell}
    return made


ENVIRONMENT = environment()
