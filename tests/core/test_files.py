import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from telos.core.errors import TelosError
from telos.core.files import folder_atomic, read_json, write_atomic, write_json


class Broken(Exception):
    pass


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path):
    file = tmp_path / "deep" / "a.txt"
    write_atomic(file, "first")

    def half(temporary: Path) -> None:
        temporary.write_text("sec")
        assert file.read_text() == "first"
        raise Broken

    with pytest.raises(Broken):
        write_atomic(file, half)
    assert file.read_text() == "first"
    write_atomic(file, b"third")
    assert file.read_bytes() == b"third" and os.listdir(file.parent) == ["a.txt"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path):
    target = tmp_path / "product"
    with pytest.raises(Broken), folder_atomic(target) as folder:
        (folder / "half").write_text("x")
        raise Broken
    assert list(tmp_path.iterdir()) == []
    with folder_atomic(target) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text("first")
        assert not target.exists()
    with pytest.raises(Broken), folder_atomic(target) as folder:
        (folder / "b").write_text("second")
        raise Broken
    assert (target / "inner" / "a").read_text() == "first" and not (target / "b").exists()
    with folder_atomic(target) as folder:
        (folder / "b").write_text("second")
    assert os.listdir(target) == ["b"] and os.listdir(tmp_path) == ["product"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    for write in (lambda path: write_json(path, {}), lambda path: folder_atomic(path).__enter__()):
        with pytest.raises(TelosError, match="file"):
            write(tmp_path / "file" / "inside")
        with pytest.raises(TelosError) as error:
            write("/proc/no_such_folder/x")
        assert "/proc/no_such_folder/x" in error.value.what and error.value.fix


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_permission_denied(tmp_path: Path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(TelosError, match="permission denied"):
            write_json(tmp_path / "a.json", {})
    finally:
        tmp_path.chmod(0o700)


def test_json_is_sorted_finite_and_explained_when_broken(tmp_path: Path):
    file = write_json(tmp_path / "a.json", {"b": 1, "a": [1.5, None]})
    assert file.read_text() == '{\n "a": [\n  1.5,\n  null\n ],\n "b": 1\n}\n'
    assert read_json(file) == {"a": [1.5, None], "b": 1}
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"a": float("nan")})
    assert read_json(file)["b"] == 1
    file.write_text('{"a": ')
    with pytest.raises(TelosError, match=r"a\.json is not JSON"):
        read_json(file)
    with pytest.raises(TelosError, match=r"no such file: .*b\.json"):
        read_json(tmp_path / "b.json")


def small_files(limit: int, code: str) -> str:
    """Runs `code` in a process whose files may not grow beyond `limit` bytes, which is how a full disk looks."""

    def before() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run([sys.executable, "-c", code], preexec_fn=before, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_leaves_what_was_there(tmp_path: Path):
    write_json(tmp_path / "a.json", {"a": 1})
    code = f"""
from telos.core.errors import TelosError
from telos.core.files import write_json
try:
    write_json({str(tmp_path / "a.json")!r}, list(range(10_000)))
except TelosError as error:
    print(error)
"""
    said = small_files(5000, code)
    assert "a.json" in said and "fix" in said
    assert read_json(tmp_path / "a.json") == {"a": 1} and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("limit", "left"), [(100, set()), (3000, {"run.json", "checkpoints"})], ids=["at the start", "at a checkpoint"]
)
def test_a_full_disk_stops_a_run_with_its_reason(tmp_path: Path, limit: int, left: set[str]):
    code = f"""
import torch
from telos.core.errors import TelosError
from telos.core.registry import use
from telos.worlds.lineworld import dataset
try:
    out = {str(tmp_path / "run")!r}
    use("bc", hidden=(64, 64)).fit(dataset(50), steps=8, checkpoint_every=3, out=out, device="cpu")
except TelosError as error:
    print(error)
"""
    said = small_files(limit, code)
    assert str(tmp_path / "run") in said and "fix" in said
    assert set(os.listdir(tmp_path / "run") if left else []) == left
    assert not left or list((tmp_path / "run" / "checkpoints").iterdir()) == []
