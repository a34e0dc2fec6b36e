"""The Atom feed and the digest: form, ids that last, and what a history tells."""

from __future__ import annotations

import email
import email.policy
import re
import xml.etree.ElementTree as ET
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from telos.cli import main
from telos.judge.results import read_results
from telos.site import feeds
from telos.site.content import Library
from telos.site.render import Site

ATOM = {"a": feeds.ATOM}
RESULTS = read_results()
HISTORY = ["confirmed", "stale", "confirmed"]
DATES = [f"2026-0{month}-01T00:00:00+00:00" for month in (1, 2, 3, 4)]


def told(states: list[str], dates: list[str], slug: str = "prdc", scale: str = "laptop") -> dict[str, Any]:
    """A result that has had these verdicts; the last is its own."""
    result = deepcopy(RESULTS["prdc", "laptop"])
    history = [{"date": date, "verdict": verdict, "commit": "f"} for verdict, date in zip(states, dates)]
    for name in ("stale_since", "fresh_since"):
        result.pop(name, None)
    return result | {
        "slug": slug, "scale": scale, "date": dates[len(states) - 1], "verdict": states[-1], "stale": False,
        "history": history[:-1],
    }  # fmt: skip


def library(**more: dict[str, Any]) -> Library:
    results = {("prdc", "laptop"): told(HISTORY, DATES)}
    return Library(results=results | {(slug, "laptop"): each for slug, each in more.items()}, pictures={})


def parse(made: bytes) -> ET.Element:
    root = ET.fromstring(made)
    assert root.tag == f"{{{feeds.ATOM}}}feed" and made.startswith(b"<?xml")
    return root


def texts(root: ET.Element, path: str) -> list[str]:
    return [each.text or "" for each in root.findall(path, ATOM)]


def moments(root: ET.Element) -> list[datetime]:
    found = [datetime.fromisoformat(text) for text in texts(root, "a:entry/a:updated")]
    assert all(each.tzinfo for each in found)
    return found


@pytest.mark.parametrize("base", ["", "https://papers.example/sub/"])
def test_the_feed_of_the_recorded_results_is_atom(base: str):
    site = Site(Library(), base=base)
    root = parse(site.files["atom.xml"]())
    for name in ("id", "title", "updated", "author/a:name"):
        assert len(texts(root, f"a:{name}")) == 1 and texts(root, f"a:{name}")[0]
    entries = root.findall("a:entry", ATOM)
    assert len(entries) == len(Library().changes) >= len(RESULTS)
    for entry in entries:
        for name in ("id", "title", "updated", "summary"):
            assert len(texts(entry, f"a:{name}")) == 1 and texts(entry, f"a:{name}")[0].strip()
        links = [link.get("href", "") for link in entry.findall("a:link[@rel='alternate']", ATOM)]
        assert len(links) == 1 and links[0].removeprefix(base) in {site.link(path) for path in site.pages}
        assert links[0].startswith(base)
    ids = [*texts(root, "a:id"), *texts(root, "a:entry/a:id")]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", id) for id in ids)
    assert moments(root) == sorted(moments(root), reverse=True)
    assert datetime.fromisoformat(texts(root, "a:updated")[0]) == moments(root)[0]
    own = [link.get("href") for link in root.findall("a:link", ATOM)]
    assert own == [f"{base}atom.xml", f"{base}index.html"]
    assert Site(Library(), base=base).files["atom.xml"]() == site.files["atom.xml"](), "built twice, the same"


def test_a_history_is_told_change_by_change():
    root = parse(Site(library()).files["atom.xml"]())
    method = library().rows["prdc"]["method"]
    assert texts(root, "a:entry/a:title") == [
        f"{method}: stale became confirmed (laptop)", f"{method}: confirmed became stale (laptop)",
        f"{method}: confirmed (laptop)",
    ]  # fmt: skip
    assert texts(root, "a:entry/a:updated") == DATES[2::-1]
    # Only a verdict that stands is told with its number.
    said = texts(root, "a:entry/a:summary")
    assert "[" in said[0] and "[" not in said[1]


def test_what_was_told_keeps_its_id():
    before = texts(parse(Site(library()).files["atom.xml"]()), "a:entry/a:id")
    new = {("prdc", "laptop"): told([*HISTORY, "refuted"], DATES)}
    new["dpo", "laptop"] = told(["not shown"], DATES[3:], "dpo")
    later = Library(results=new, pictures={})
    root = parse(Site(later).files["atom.xml"]())
    after = texts(root, "a:entry/a:id")
    assert after[2:] == before and len(set(after)) == 5
    assert {"refuted" in title for title in texts(root, "a:entry/a:title")[:2]} == {True, False}
    # The same verdict measured again is no news.
    again = Library(results={("prdc", "laptop"): told(["confirmed", "confirmed"], DATES)}, pictures={})
    assert len(texts(parse(Site(again).files["atom.xml"]()), "a:entry/a:id")) == 1


def test_the_feed_ends_somewhere_and_may_be_empty():
    many = [f"{(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=i)).isoformat()}" for i in range(80)]
    states = ["confirmed" if i % 2 else "refuted" for i in range(80)]
    found = moments(
        parse(Site(Library(results={("prdc", "laptop"): told(states, many)}, pictures={})).files["atom.xml"]())
    )
    assert len(found) == feeds.LATEST and found[0].isoformat() == many[-1]
    empty = parse(Site(Library(results={}, pictures={})).files["atom.xml"]())
    assert empty.findall("a:entry", ATOM) == [] and datetime.fromisoformat(texts(empty, "a:updated")[0])


def test_hostile_words_are_text():
    result = told(HISTORY, DATES)
    for part in result["parts"]:
        part["text"] = "</summary><script>alert(1)</script> & ]]> \"'"
    made = Site(Library(results={("prdc", "laptop"): result}, pictures={})).files["atom.xml"]()
    assert "<script>alert(1)</script> & ]]>" in texts(parse(made), "a:entry/a:summary")[0] and b"<script" not in made


def test_the_digest_takes_what_is_new():
    found = library(dpo=told(["not shown"], DATES[3:], "dpo"))
    moment = feeds.moment(DATES[1])
    since = feeds.since(found, moment)
    assert [(change.slug, change.verdict) for change in since] == [
        ("dpo", "not shown"), ("prdc", "confirmed"), ("prdc", "stale"),
    ]  # fmt: skip
    text = feeds.markdown(found, since, moment, "https://papers.example/")
    lines = text.splitlines()
    assert lines[0] == "# telos since 2026-02-01"
    new, changed = lines.index("## New papers and scales"), lines.index("## Changed verdicts")
    rows = {name: found.rows[name]["method"] for name in ("dpo", "prdc")}
    assert lines[new + 2] == f"- **{rows['dpo']}: not shown (laptop)**, 2026-04-01 <https://papers.example/papers/dpo>"
    assert new < changed and lines[changed + 2].startswith(f"- **{rows['prdc']}: stale became confirmed (laptop)**")
    odds = found.false_verdicts
    assert lines[-1] == (
        f"Of 2 verdicts, luck alone confirms at most {odds['confirmed']:.2g} and refutes at most {odds['refuted']:.2g} "
        "wrongly."
    )
    nothing = feeds.markdown(found, [], moment)
    assert "Nothing changed." in nothing and "##" not in nothing
    assert feeds.moment("2026-02-01") == feeds.moment("2026-02-01T01:00+01:00") == datetime(2026, 2, 1, tzinfo=UTC)


def digest(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    code = main(["digest", *options])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_digest_on_the_command_line(capsys: pytest.CaptureFixture[str]):
    code, out, err = digest(capsys, "--since", "2000-01-01", "--url", "https://papers.example")
    assert code == 0 and err == "" and out.startswith("# telos since 2000-01-01\n\n## New papers")
    links = out.count("https://papers.example/papers/") + out.count("https://papers.example/compare/")
    assert links == out.count("\n- **") == len(Library().changes)
    assert "Nothing changed." in digest(capsys, "--since", "2999-01-01")[1]


@pytest.mark.parametrize(
    "date", ["yesterday", "2026-02-30", "2026-13-01", "", "26-1-1", "2026-01-01T25:00", "2026-01-01; x"]
)
def test_a_wrong_date_is_refused(capsys: pytest.CaptureFixture[str], date: str):
    code, out, err = digest(capsys, "--since", date)
    assert code == 2 and out == "" and "--since is not a date" in err and "2026-01-31" in err


@pytest.mark.parametrize("date", ["0001-01-01T00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-01-31T12:00Z"])
def test_the_ends_of_time_are_dates(capsys: pytest.CaptureFixture[str], date: str):
    assert digest(capsys, "--since", date)[0] == 0


def test_the_digest_as_an_email(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    file = tmp_path / "deep" / "digest.eml"
    options = ("--since", "2000-01-01", "--eml", str(file))
    code, out, _ = digest(capsys, *options, "--to", "Réader <reader@example.org>, other@example.org")
    assert code == 0 and out.strip() == str(file)
    message = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
    assert isinstance(message, EmailMessage) and not message.defects
    assert message["Subject"] == "telos since 2000-01-01" and message["From"] == "telos <telos@localhost>"
    assert [(each.display_name, each.addr_spec) for each in message["To"].addresses] == [
        ("Réader", "reader@example.org"), ("", "other@example.org"),
    ]  # fmt: skip
    assert abs(parsedate_to_datetime(message["Date"]) - datetime.now(UTC)) < timedelta(minutes=2)
    assert re.fullmatch(r"<[0-9a-f-]+@telos\.invalid>", message["Message-ID"])
    text = digest(capsys, "--since", "2000-01-01")[1]
    assert message.get_content() == text and message.get_content_type() == "text/plain"
    assert max(map(len, file.read_bytes().split(b"\n"))) <= 998
    digest(capsys, *options)
    assert b"undisclosed-recipients:" in file.read_bytes()


@pytest.mark.parametrize("name", ["--to", "--sender"])
@pytest.mark.parametrize("mark", ["\r\n", "\n", "\r", "\0", "\x0b", "\x1b", "\x85", "\u2028", "\x7f"])
def test_no_further_header_can_be_slipped_in(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, mark: str):
    file = tmp_path / "digest.eml"
    value = f"a@example.org{mark}Bcc: b@example.org"
    code, out, err = digest(capsys, "--since", "2000-01-01", "--eml", str(file), name, value)
    assert code == 2 and out == "" and name in err and "control character" in err
    assert [*tmp_path.iterdir()] == []


def test_an_email_that_cannot_be_written(capsys: pytest.CaptureFixture[str]):
    code, _, err = digest(capsys, "--since", "2000-01-01", "--eml", "/dev/null/x.eml")
    assert code == 2 and "cannot write /dev/null/x.eml" in err
