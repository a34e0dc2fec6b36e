"""Files of arrays that are mapped."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from telos.core.errors import TelosError
from telos.data import npz_files
from telos.data.formats import load, save_npz
from telos.data.records import Box, Transitions


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small arrays are mapped too."""
    monkeypatch.setattr(npz_files, "MAPPED_FROM", 0)


ARRAYS = {
    "numbers": np.arange(12, dtype=np.float64).reshape(3, 4),
    "flags": np.array([True, False, True]),
    "one": np.array(3),
    "words": np.array(["left", "right"]),
}


def test_numpy_reads_what_is_saved_and_arrays_are_mapped(tmp_path: Path):
    path = tmp_path / "a.npz"
    npz_files.save(path, ARRAYS)
    assert zipfile.ZipFile(path).testzip() is None
    with np.load(path, allow_pickle=False) as file:
        for name, array in ARRAYS.items():
            assert np.array_equal(file[name], array) and file[name].dtype == array.dtype
            found = npz_files.read(path, file, name)
            assert isinstance(found, np.memmap) and np.array_equal(found, array) and found.dtype == array.dtype
            assert found.ctypes.data % npz_files.ALIGNMENT == 0 and found.shape == array.shape


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_saves_is_read(tmp_path: Path, save):
    path = tmp_path / "a.npz"
    save(path, **ARRAYS)
    with np.load(path, allow_pickle=False) as file:
        for name, array in ARRAYS.items():
            assert np.array_equal(npz_files.read(path, file, name), array)


def test_transitions_are_mapped_and_may_be_changed_in_memory(tmp_path: Path):
    rows = np.arange(10.0)
    made = Transitions.validated(
        observations=rows, actions=rows / 10, rewards=rows, next_observations=rows + 1, terminated=rows < 0,
        truncated=rows == 9, action_space=Box((0.0,), (1.0,)),
    )  # fmt: skip
    path = save_npz(made, tmp_path / "a.npz")
    first = load(path)
    assert isinstance(first, Transitions) and first.fingerprint() == made.fingerprint()
    first.rewards[0] = 5.0
    again = load(path)
    assert isinstance(again, Transitions) and torch.equal(again.rewards, made.rewards)


def test_a_changed_byte_is_noticed(tmp_path: Path):
    path = tmp_path / "a.npz"
    rows = np.arange(1000.0, dtype=np.float32)
    flags = np.zeros(1000, bool)
    npz_files.save(path, {
        "observations": rows, "actions": rows * 0, "rewards": rows, "next_observations": rows, "terminated": flags,
        "truncated": flags, "n_actions": np.array(2),
    })  # fmt: skip
    whole = bytearray(path.read_bytes())
    place = whole.index(rows.tobytes()) + 400
    whole[place] ^= 1
    path.write_bytes(whole)
    with pytest.raises(TelosError, match="cannot be read"):
        load(path)
