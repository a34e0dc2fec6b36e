"""Static pages: whole or not at all, and never over somebody else's files."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from telos.cli import main
from telos.core.errors import TelosError
from telos.judge.results import read_results
from telos.site.build import MARK, build
from telos.site.content import Library
from telos.site.render import Site

SMALL = Library(results={("prdc", "laptop"): read_results()["prdc", "laptop"]}, pictures={})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("static") / "deep" / "site"
    assert main(["site", "build", str(out), "--url", "https://papers.example/sub"]) == 0
    return out


def test_a_build_has_every_page_and_file(built: Path):
    site = Site(Library(), base="https://papers.example/sub/")
    found = tree(built)
    assert set(found) == {site.link(path) for path in site.pages} | set(site.files) | {MARK}
    assert found["index.html"].decode() == site.pages[""]()
    assert all(found.values()) and all(found[name] == make() for name, make in site.files.items())
    assert [path.name for path in built.parent.iterdir()] == ["site"], "nothing lies beside it"
    assert all(path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644) for path in built.rglob("*"))
    assert b'href="https://papers.example/sub/papers/prdc.html"' in found["atom.xml"]
    pages = {name: text for name, text in found.items() if name.endswith(".html")}
    assert not [name for name, text in pages.items() if b"papers.example" in text or str(built).encode() in text]


def test_an_earlier_build_is_replaced_whole(built: Path, capsys: pytest.CaptureFixture[str]):
    (built / "papers" / "gone.html").write_text("of an older catalogue")
    (built / "index.html").write_text("old")
    assert main(["site", "build", str(built)]) == 0
    out = capsys.readouterr().out
    found = tree(built)
    assert out == f"{len(found) - 1} files in {built}\n"
    assert "papers/gone.html" not in found and found["index.html"] != b"old"
    assert b"papers.example" not in found["atom.xml"] and b'href="papers/prdc.html"' in found["atom.xml"]
    assert [path.name for path in built.parent.iterdir()] == ["site"]


def test_what_is_not_ours_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, file, link = tmp_path / "mine", tmp_path / "file", tmp_path / "link"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    (folder / ".hidden").write_text("")
    file.write_text("a file")
    link.symlink_to(folder)
    before = tree(tmp_path)
    for out in (folder, file, link, file / "below"):
        assert main(["site", "build", str(out)]) == 2
        said = capsys.readouterr()
        assert said.out == "" and str(out.resolve()) in said.err and "Traceback" not in said.err
    with pytest.raises(TelosError, match=r"did not write(.|\n)*fix: name another folder"):
        build(folder, library=SMALL)
    with pytest.raises(TelosError, match="is a file"):
        build(file, library=SMALL)
    assert tree(tmp_path) == before and link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "file", "link"}


@pytest.mark.parametrize("url", ["ftp://x", "papers.example", "https://", "javascript:alert(1)", "https:// x"])
def test_a_wrong_address_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str):
    assert main(["site", "build", str(tmp_path / "out"), "--url", url]) == 2
    assert "--url is not an address" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_build_that_breaks_leaves_the_old_one(built: Path):
    before = tree(built)
    broken = Library(results={("prdc", "laptop"): {**SMALL.results["prdc", "laptop"], "arms": None}}, pictures={})
    with pytest.raises(AttributeError):
        build(built, library=broken)
    assert tree(built) == before and [path.name for path in built.parent.iterdir()] == ["site"]


def test_a_killed_build_leaves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "site"
    process = subprocess.Popen([sys.executable, "-m", "telos", "site", "build", str(out)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not [*tmp_path.glob(".site.*.tmp/papers/*.html")]:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    assert not out.exists() and len([*tmp_path.iterdir()]) == 1
    # What it left behind goes with the next build, and nothing else does. The current folder will do, if it is empty.
    others = {".site.mine.tmp", ".sites.abc.tmp", "site.tmp"}
    for name in (*others, "site"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(out)
    assert build(".", library=SMALL) and (out / "index.html").is_file() and (out / MARK).is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"site", *others}
