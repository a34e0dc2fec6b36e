"""What changed: an Atom feed, and a digest as Markdown or as an e-mail."""

from __future__ import annotations

import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from urllib.parse import urljoin

from telos import catalogue
from telos.judge.report import with_interval
from telos.judge.results import Change
from telos.site.content import Library

ATOM = "http://www.w3.org/2005/Atom"
LATEST = 50
"""Entries in the feed."""


def atom(library: Library, base: str, link: Callable[[str], str]) -> bytes:
    """The feed. Its links are absolute if `base` is the site's address, else relative to the feed itself.

    An entry's id follows from what changed and when, so a reader sees each change once.
    """
    ET.register_namespace("", ATOM)
    feed = ET.Element(f"{{{ATOM}}}feed")
    changes = library.changes[:LATEST]
    element(feed, "id", identity("feed"))
    element(feed, "title", "telos: new papers and changed verdicts")
    element(feed, "updated", changes[0].date if changes else "1970-01-01T00:00:00+00:00")
    author = element(feed, "author")
    element(author, "name", "telos")
    element(feed, "link", href=f"{base}atom.xml", rel="self", type="application/atom+xml")
    element(feed, "link", href=urljoin(base, link("")), rel="alternate", type="text/html")
    for change in changes:
        entry = element(feed, "entry")
        element(entry, "id", identity(change.slug, change.scale, change.verdict, change.date))
        element(entry, "title", title(library, change))
        element(entry, "updated", change.date)
        element(entry, "link", href=base + link(library.address(change.slug)), rel="alternate", type="text/html")
        element(entry, "summary", said(library, change))
    ET.indent(feed, " ")
    return ET.tostring(feed, encoding="utf-8", xml_declaration=True) + b"\n"


def element(parent: ET.Element, name: str, text: str | None = None, **attributes: str) -> ET.Element:
    child = ET.SubElement(parent, f"{{{ATOM}}}{name}", attributes)
    child.text = text
    return child


def identity(*words: str) -> str:
    """A name for good, from words alone."""
    return uuid.uuid5(uuid.NAMESPACE_URL, "/".join(["telos", *words])).urn


def title(library: Library, change: Change) -> str:
    """One line: what is new, or what became what."""
    method = library.title(change.slug)
    if change.before is None:
        return f"{method}: {change.verdict} ({change.scale})"
    return f"{method}: {change.before} became {change.verdict} ({change.scale})"


def said(library: Library, change: Change) -> str:
    """The claim and, where the change is the present state, its headline number."""
    row = library.rows.get(change.slug)
    text = row["claim"] or row["summary"] if row else ""
    result = library.results.get((change.slug, change.scale))
    part = catalogue.headline(result) if result and catalogue.verdict(result) == change.verdict else None
    if part is None:
        return text
    return f"{text} {part['text']}: {with_interval(part['interval']['estimate'], part['interval'])}."


def since(library: Library, date: datetime) -> list[Change]:
    """What changed at `date` or after it, newest first."""
    return [change for change in library.changes if datetime.fromisoformat(change.date) >= date]


def markdown(library: Library, changes: Sequence[Change], date: datetime, base: str = "") -> str:
    """The digest: new papers first, then changed verdicts."""
    lines = [f"# telos since {date:%Y-%m-%d}", ""]
    for heading, group in (
        ("New papers and scales", [change for change in changes if change.before is None]),
        ("Changed verdicts", [change for change in changes if change.before is not None]),
    ):
        if group:
            lines += [f"## {heading}", ""]
        for change in group:
            address = f" <{base}{library.address(change.slug)}>" if base else ""
            lines += [f"- **{title(library, change)}**, {change.date[:10]}{address}", f"  {said(library, change)}"]
        lines += [""] if group else []
    if not changes:
        lines += ["Nothing changed.", ""]
    odds = library.false_verdicts
    lines.append(
        f"Of {odds['claims']} verdicts, luck alone confirms at most {odds['confirmed']:.2g} and refutes at most "
        f"{odds['refuted']:.2g} wrongly."
    )
    return "\n".join(lines) + "\n"


def email(text: str, date: datetime, sender: str, to: str) -> bytes:
    """The digest as an e-mail file (RFC 5322), ready to be opened or handed to a mail program; nothing is sent."""
    message = EmailMessage()
    message["Subject"] = text.splitlines()[0].removeprefix("# ")
    message["From"] = sender
    message["To"] = to
    message["Date"] = format_datetime(date)
    message["Message-ID"] = f"<{uuid.uuid5(uuid.NAMESPACE_URL, text)}@telos.invalid>"
    message.set_content(text)
    return message.as_bytes()


def moment(text: str) -> datetime:
    """A date or a date with a time, in UTC where no zone is named.

    Raises:
        ValueError: it is neither.
    """
    date = datetime.fromisoformat(text)
    return date if date.tzinfo else date.replace(tzinfo=UTC)
