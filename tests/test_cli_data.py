"""telos data measure."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from telos.cli import main
from telos.core.rng import Rng
from telos.data.formats import save_npz
from telos.data.measures import episodes
from telos.worlds.four_rooms_task import EXPERT_RETURN, dataset

Telos = Callable[..., tuple[int, str, str]]


@pytest.fixture
def telos(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Telos:
    """Runs `telos data` in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = main(["data", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def rooms(tmp_path: Path) -> Path:
    """A folder with data of three schemes."""
    for scheme in ("random", "expert", "replay"):
        save_npz(dataset(scheme, 600, Rng(1)), tmp_path / f"{scheme}.npz")
    return tmp_path


def test_npz_against_a_reference(telos: Telos, rooms: Path):
    options = ("expert.npz", "--reference", "replay.npz", "--random", "random.npz", "--expert", EXPERT_RETURN)
    code, out, err = telos("measure", *options)
    assert (code, err) == (0, "")
    found = {line.split()[0]: line for line in out.splitlines()}
    assert "600" in found["transitions"] and "50: 50 terminated" in found["episodes"]
    assert found["TQ"].split()[1] == "1.0000" and "0.82" in found["TQ"] and "inferred" not in found["TQ"]
    assert "12, 0.0200" in found["unique"] and "perplexity 12.0" in found["entropy"]
    assert found["duplicates"].split()[1] == "588"
    values = json.loads(telos("measure", *options, "--json")[1])
    assert values["unique"] == 12 and values["saco"] == 12 / values["reference_unique"] and values["compared"] == 600
    assert values["tq"] == pytest.approx(1, abs=1e-6) and f"{values['saco']:.4f}" in found["SACo"]


def test_files_are_written_and_named(telos: Telos, rooms: Path):
    pytest.importorskip("matplotlib")
    code, out, _ = telos("measure", "random.npz", "--plot", "picture.png", "--json", "numbers.json")
    assert code == 0 and out.splitlines()[-2:] == ["picture.png", "numbers.json"]
    assert (rooms / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((rooms / "numbers.json").read_text())["episodes"] == len(
        episodes(dataset("random", 600, Rng(1))).lengths
    )
    assert "lowest return of an episode" in " ".join(out.split()) and "note: no reference" in out
    assert telos("measure", "random.npz", "--reference", "replay.npz", "--plot", "b.png")[0] == 0


def test_hashed_counts_say_that_they_are_estimates(telos: Telos, rooms: Path):
    out = telos("measure", "random.npz", "--counter", "hashed")[1]
    assert "(estimated)" in out and "entropy" not in out and "duplicates" not in out


def test_recordings_and_schemes(telos: Telos):
    pytest.importorskip("gymnasium")
    random = json.loads(telos("measure", "gym:CartPole-v1?steps=300", "--json")[1])
    assert random["transitions"] == 300 and random["action_coverage"] == [1.0] and 9 <= random["returns"]["mean"] < 60
    assert random["returns"]["mean"] == pytest.approx(random["lengths"]["mean"], rel=0.2)
    code, _, err = telos("measure", "gym:CartPole-v1?scheme=noisy&steps=300")
    assert code == 2 and "needs an expert" in err
    code, _, err = telos("measure", "gym:CartPole-v1?scheme=good&steps=300")
    assert code == 2 and "no scheme is called 'good'" in err


def test_minari(telos: Telos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    minari, gym = pytest.importorskip("minari"), pytest.importorskip("gymnasium")
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    lengths = (8, 5, 11)
    buffers = [
        EpisodeBuffer(
            id=i, seed=i, observations=np.full((n + 1, 4), i, np.float32), actions=np.arange(n) % 2, rewards=[1.0] * n,
            terminations=[False] * (n - 1) + [i != 1], truncations=[False] * n,
        )
        for i, n in enumerate(lengths)
    ]  # fmt: skip
    env = gym.make("CartPole-v1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            "telos/few-v0", buffers, env=env, observation_space=env.observation_space, action_space=env.action_space
        )
    for name in ("minari:telos/few-v0", tmp_path / "telos/few-v0"):
        values = json.loads(telos("measure", name, "--json")[1])
        assert values["ends"] == {"terminated": 2, "truncated": 1, "recording": 0}
        assert values["returns"]["mean"] == values["lengths"]["mean"] == 8 and values["unique"] == 6


def test_sessions(telos: Telos, tmp_path: Path):
    lines = ["session,x0,action,reward", *(f"{row // 4},{row % 3},{'ab'[row % 2]},{row % 5}" for row in range(20))]
    (tmp_path / "visits.csv").write_text("\n".join(lines) + "\n")
    code, out, err = telos("measure", "visits.csv", "--json")
    assert code == 0, err
    assert json.loads(out)["action_shares"] == [0.5, 0.5] and json.loads(out)["lengths"]["most"] <= 4


def test_other_data_are_named(telos: Telos, tmp_path: Path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    (tmp_path / "texts.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    (tmp_path / "log.csv").write_text("x0,action,reward\n1,a,0\n2,b,1\n")
    for name, kind in (("pairs.jsonl", "Preferences"), ("texts.jsonl", "Demonstrations"), ("log.csv", "LoggedBandit")):
        code, out, err = telos("measure", name)
        assert code == 2 and out == "" and f"{name} holds no transitions" in err and f"got: {kind}" in err


def test_what_is_wrong_is_named_before_anything_is_read(telos: Telos, rooms: Path):
    other = np.load(rooms / "random.npz")
    np.savez(
        rooms / "wide.npz", **{**other, "observations": np.zeros((600, 3)), "next_observations": np.zeros((600, 3))}
    )
    for arguments, words in (
        (["count"], "no such action 'count'"), (["measure"], "required: DATA"),
        (["measure", "none.npz"], "no such file"), (["measure", "random.npz", "--plot", "a.jpg"], "ends in .png"),
        (["measure", "none.npz", "--discount", "1.5"], "discount is out of range"),
        (["measure", "random.npz", "--random", "nan"], "--random is not finite"),
        (["measure", "random.npz", "--random", "1", "--expert", "0"], "not above"),
        (["measure", "random.npz", "--reference", "wide.npz"], "another environment"),
        (["measure", "random.npz", "--bin", "3"], "did you mean --bins"),
    ):  # fmt: skip
        code, out, err = telos(*arguments)
        assert code == 2 and out == "" and words in err, arguments
    assert telos()[0] == 0 and "telos data measure" in telos("--help")[1]
    assert "--counter" in telos("measure", "--help")[1]
