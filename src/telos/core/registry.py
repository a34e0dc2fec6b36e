"""Finds methods, claims and products by looking at the package's files, without importing torch.

A method file says `PAPER = {...}` or `BASELINE = {...}`, literals only, at the start of a line, closed by `}` at the
start of a line. Nothing is registered by import and no list is edited.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telos.core.errors import TelosError

PACKAGE = Path(__file__).resolve().parent.parent
HEADER = re.compile(r"^(PAPER|BASELINE)\s*(?::[^=\n]+)?=\s*(\{.*?^\})", re.M | re.S)
METHOD_CLASS = re.compile(r"^class (\w+)\(.*\bMethod\b.*\):", re.M)
PRODUCT_CLASS = re.compile(r"^class (\w+)\(.*\b(?:Product|Policy|Generator|Scorer|Density|Recogniser)\b.*\):", re.M)


@dataclass(frozen=True)
class Entry:
    """A method file: its slug, family, header and the names of its Method classes, headline first."""

    slug: str
    family: str
    module: str
    header: dict[str, Any]
    classes: tuple[str, ...]
    baseline: bool

    @property
    def claim_module(self) -> str | None:
        """The claim's module, where the file is there."""
        return f"telos.claims.{self.slug}" if (PACKAGE / "claims" / f"{self.slug}.py").is_file() else None


def read_entry(path: Path) -> Entry | None:
    """The entry of one file under methods/, or None for a file that declares no method (a `_variants` file)."""
    source = path.read_text()
    found = HEADER.search(source)
    if found is None:
        return None
    try:
        header = ast.literal_eval(found[2])
    except ValueError as error:
        raise TelosError(f"{path.name}: {found[1]} must hold literals only", got=str(error)) from error
    module = ".".join(["telos", *path.relative_to(PACKAGE).with_suffix("").parts])
    return Entry(
        path.stem, path.parent.name, module, header, tuple(METHOD_CLASS.findall(source)), found[1] == "BASELINE"
    )


@functools.cache
def entries() -> dict[str, Entry]:
    """Every method in the package by slug, papers and baselines, in the order of family and slug."""
    found = (read_entry(path) for path in sorted((PACKAGE / "methods").glob("*/*.py")))
    return {entry.slug: entry for entry in found if entry is not None}


@functools.cache
def planned() -> dict[str, dict[str, Any]]:
    """The planned rows of the 68 papers by slug, in the catalogue's order."""
    return {row["slug"]: row for row in json.loads((PACKAGE / "planned.json").read_text())}


def entry(slug: str) -> Entry:
    """The entry of `slug`.

    Raises:
        TelosError: unknown slug, with the nearest known ones; or a paper whose method is still planned.
    """
    known = entries()
    if slug in known:
        return known[slug]
    if slug in planned():
        raise TelosError(f"'{slug}' is planned: it has no method yet", fix="`telos papers` shows what can be run")
    close = difflib.get_close_matches(slug, list({**known, **planned()}), n=3)
    raise TelosError(
        f"no method is called '{slug}'",
        expected="a slug from `telos papers --baselines`",
        fix=f"did you mean {' or '.join(close)}?" if close else "list them with `telos papers --baselines`",
    )


def method_class(name: str) -> type[Any]:
    """The class of `slug`, or of `slug.variant` in a file with several methods (names are case-insensitive)."""
    slug, _, variant = name.partition(".")
    found = entry(slug)
    module = importlib.import_module(found.module)
    if not variant:
        return getattr(module, found.classes[0])
    for candidate in found.classes:
        if candidate.lower() == variant.lower().replace("_", ""):
            return getattr(module, candidate)
    raise TelosError(f"'{slug}' has no variant '{variant}'", expected=" or ".join(found.classes))


def use(name: str, **options: Any) -> Any:
    """A method by slug, with options: how one method holds another as a field."""
    return method_class(name)(**options)


def class_slug(cls: type) -> str:
    """The name under which `method_class` finds `cls`: `slug`, or `slug.class` when it is not the headline."""
    slug = cls.__module__.rsplit(".", 1)[-1]
    found = entries().get(slug)
    if found is None or cls.__name__ == found.classes[0]:
        return slug
    return f"{slug}.{cls.__name__.lower()}"


@functools.cache
def public_classes() -> dict[str, str]:
    """Class name -> module, for `telos.DPO` and the like."""
    return {name: found.module for found in entries().values() for name in found.classes}


def product_class(kind: str) -> type[Any]:
    """The product class called `kind`, looked up among the classes of this package only."""
    for folder in ("nets", "lm", "methods", "core", "purposes"):
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            if kind in PRODUCT_CLASS.findall(path.read_text()):
                module = ".".join(["telos", *path.relative_to(PACKAGE).with_suffix("").parts])
                return getattr(importlib.import_module(module), kind)
    raise TelosError(f"this version of telos has no product of kind '{kind}'", fix="install the version that saved it")
