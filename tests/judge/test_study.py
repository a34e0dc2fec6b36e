"""Studies of data sets: what is made and measured, who did how well, and what happens after a stop."""

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import telos
from telos.core.errors import TelosError
from telos.data.measures import mean_return, measure
from telos.data.schemes import SCHEMES
from telos.judge.study import Point, judged, measures, pearson, settle, study

CELLS, LIMIT = 5, 12
ENV = "TelosStudy/Corridor-v0"


class Corridor(gymnasium.Env):
    """Cells in a row; action 1 goes right, 0 left; the last cell pays and ends, the sooner the more."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (CELLS,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = self.steps = 0
        return np.eye(CELLS, dtype=np.float32)[0], {}

    def step(self, action):
        self.cell, self.steps = min(max(self.cell + 2 * int(action) - 1, 0), CELLS - 1), self.steps + 1
        there = self.cell == CELLS - 1
        reward = 1 - 0.9 * self.steps / LIMIT if there else 0.0
        return np.eye(CELLS, dtype=np.float32)[self.cell], reward, there, not there and self.steps == LIMIT, {}


gymnasium.register(ENV, Corridor)
BEST = 1 - 0.9 * 4 / LIMIT
SMALL = {"hidden": (32,), "learning_rate": 5e-3, "batch_size": 64}
VALUES = {**SMALL, "activation": "relu"}
METHODS = {"clone": {"use": "bc", **SMALL}, "dqn": VALUES}
ONLINE = {**VALUES, "hidden": [32], "warmup": 200, "epsilon_updates": 200, "target_every": 20}
OPTIONS = {
    "steps": 60, "transitions": 500, "seeds": 2, "discount": 0.8, "evaluations": 3, "episodes": 2, "device": "cpu",
    "online": ONLINE, "jobs": 1, "said": lambda text: None,
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return study(ENV, METHODS, out=tmp_path_factory.mktemp("studied") / "whole", **OPTIONS)


def test_five_data_sets_a_seed_are_kept_and_measured(finished):
    assert [(point.scheme, point.seed) for point in finished.points] == [(s, seed) for seed in (0, 1) for s in SCHEMES]
    for seed in (0, 1):
        sets = {s: telos.load(finished.folder / "data" / f"seed-{seed}" / f"{s}.npz") for s in SCHEMES}
        kept = json.loads((finished.folder / "data" / f"seed-{seed}.json").read_text())
        assert {len(data) for data in sets.values()} == {500}
        assert kept["expert_return"] == pytest.approx(BEST) == max(kept["online"]) and len(kept["online"]) >= 3
        # The online learner's policy is the expert, and what it saw, at first at random, the replay.
        expert = telos.load_product(finished.folder / "online" / f"seed-{seed}")
        assert (sets["expert"].actions == expert.act(sets["expert"].observations).action).all()
        random = sets["replay"].actions != expert.act(sets["replay"].observations).action
        assert random[:100].float().mean() > 0.3 > 0.1 > random[-100:].float().mean()
        points = {point.scheme: point for point in finished.points if point.seed == seed}
        worst = mean_return(sets["random"])
        for scheme, point in points.items():
            found = measure(sets[scheme], reference=sets["replay"], random_return=worst, expert_return=BEST)
            assert point.tq == pytest.approx(found.tq) and point.saco == pytest.approx(found.saco)
        assert points["random"].tq == pytest.approx(0, abs=1e-9) and points["replay"].saco == 1
        assert points["expert"].tq == pytest.approx(1, abs=0.02) and points["expert"].saco < 0.6


def test_scores_lie_between_random_and_expert_and_the_best_is_no_less_than_the_last(finished):
    for point in finished.points:
        assert set(point.best) == set(METHODS)
        assert all(point.best[name] >= point.last[name] for name in METHODS)
        assert all(point.best[name] <= 1 + 1e-9 for name in METHODS)
    points = {(point.scheme, point.seed): point for point in finished.points}
    for seed in (0, 1):
        # Cloning does what the data did: the way of the expert, and chance's.
        assert points["expert", seed].last["clone"] == pytest.approx(1)
        assert points["random", seed].last["clone"] < 0.8
        kept = json.loads((finished.folder / "data" / f"seed-{seed}.json").read_text())
        run = json.loads((finished.folder / "runs" / "dqn-noisy" / f"seed-{seed}.json").read_text())
        expected = (run["returns"][-1] - kept["random_return"]) / (BEST - kept["random_return"])
        assert points["noisy", seed].last["dqn"] == pytest.approx(expected) and len(run["returns"]) == 3


def test_correlations_are_pearsons_over_all_data_sets(finished):
    found = {(one.method, one.omega, one.measure): one for one in finished.correlations}
    assert len(found) == 2 * 2 * 2
    one = found["clone", "last", "tq"]
    pairs = [(point.last["clone"], point.tq) for point in finished.points]
    assert one.r == pytest.approx(np.corrcoef(*zip(*pairs))[0, 1]) and one.r > 0.6 and one.p < 0.1

    def point(tq, omega):
        return Point("random", 0, tq, 1.0, {"m": omega}, {"m": None})

    # r of (0, 1, 2) and (0, 1, 3): 3 / sqrt(2 * 42 / 9); its p has one degree of freedom.
    r, p = pearson([point(0, 0.0), point(1, 1.0), point(2, 3.0)], "m", "best", "tq")
    assert r == pytest.approx(3 / np.sqrt(28 / 3)) and p == pytest.approx(2 * np.arccos(r) / np.pi)
    assert pearson([point(0, 1.0)] * 4, "m", "best", "tq") == (None, None)
    assert pearson([point(0, 1.0), point(1, 2.0)], "m", "best", "tq") == (None, None)
    assert pearson([point(tq, tq) for tq in range(4)], "m", "best", "saco") == (None, None)
    assert pearson([point(tq, tq) for tq in range(4)], "m", "last", "tq") == (None, None)


def test_table_and_picture_stand_in_the_folder(finished):
    kept = json.loads((finished.folder / "study.json").read_text())
    assert kept["table"] == json.loads(json.dumps(finished.to_json())) and kept["settings"]["env"] == ENV
    assert not pytest.importorskip("matplotlib") or (finished.folder / "figure.png").stat().st_size > 5000


def test_after_stops_the_same_call_goes_on_and_comes_out_the_same(finished, tmp_path):
    class Stop(KeyboardInterrupt):
        pass

    def stopping(after):
        heard = []

        def said(text):
            heard.append(text)
            if len(heard) == after:
                raise Stop

        return said

    out, options = tmp_path / "s", {**OPTIONS, "seeds": 1}
    with pytest.raises(Stop):
        study(ENV, METHODS, out=out, **{**options, "said": stopping(1)})
    assert (out / "data" / "seed-0.json").is_file() and not (out / "runs").exists()
    with pytest.raises(Stop):
        study(ENV, METHODS, out=out, **{**options, "said": stopping(4)})
    kept = sorted([*out.glob("data/*.json"), *out.glob("runs/*/*.json")])
    assert len(kept) == 1 + 4
    written = {path: path.stat().st_mtime_ns for path in kept}
    again = study(ENV, METHODS, out=out, **options)
    assert {path: path.stat().st_mtime_ns for path in kept} == written
    assert again.points == finished.points[: len(SCHEMES)]
    with pytest.raises(TelosError, match=r"another study: its settings differ(.|\n)*\{'steps': 60\}"):
        study(ENV, METHODS, out=out, **{**options, "steps": 61})
    with pytest.raises(TelosError, match="another study: its methods differ"):
        study(ENV, {"dqn": VALUES}, out=out, **options)


def test_slugs_stand_for_the_papers_settings():
    cql = settle("cql", "cql", 0.95)
    assert (cql.alpha, cql.learning_rate, cql.batch_size, cql.discount) == (0.1, 1e-4, 128, 0.95)
    assert settle("mine", {"use": "cql", "alpha": 2.0}, 0.95) == settle("cql", {"alpha": 2.0}, 0.95)
    bc = settle("bc", "bc", 0.95)
    assert bc.hidden == (256, 256, 256) and not bc.normalise
    method = telos.use("dqn", hidden=(8,))
    assert settle(method, method, 0.5) is method


def test_what_cannot_be_studied_is_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "s"
    for env, methods, changes, words in (
        ("Pendulum-v1", ["bc"], {}, "has continuous actions"),
        ("Nowhere-v0", ["bc"], {}, "no environment is called"),
        (ENV, ["bcc"], {}, "no method is called 'bcc'"),
        (ENV, ["td3_bc"], {}, "needs continuous actions"),
        (ENV, ["dpo"], {}, "dpo does not learn from Transitions"),
        (ENV, ["dataset_perspective"], {}, "does not learn from Transitions"),
        (ENV, ["bc", "bc"], {}, "two methods are called 'bc'"),
        (ENV, {"dqn": {"width": 3}}, {}, "no option 'width'"),
        (ENV, ["bc"], {"online": {"width": 3}}, "no option 'width'"),
        (ENV, ["bc"], {"transitions": 200}, "learns nothing"),
        (ENV, ["bc"], {"evaluations": 0}, "out of range"),
    ):  # fmt: skip
        with pytest.raises(TelosError, match=words):
            study(env, methods, out=out, **{**OPTIONS, **changes})
    assert not out.exists()


def test_without_an_expert_there_is_no_study(finished):
    sets = {s: telos.load(finished.folder / "data" / "seed-0" / f"{s}.npz") for s in SCHEMES}
    assert measures(sets, [0.0, BEST, 0.1], 0)["expert_return"] == BEST
    with pytest.raises(TelosError, match="no better than a random policy"):
        measures(sets, [0.0, mean_return(sets["random"])], 0)


def test_a_run_that_fails_leaves_a_gap():
    sets = {0: {"random_return": 1.0, "expert_return": 3.0, "sets": {s: {"tq": 0.5, "saco": 1.0} for s in SCHEMES}}}
    found = {("a", s, 0): {"returns": [2.0, 5.0, 1.0]} for s in SCHEMES} | {
        ("b", s, 0): {"error": "it broke"} if s == "mixed" else {"returns": [3.0]} for s in SCHEMES
    }
    result = judged(ENV, ["a", "b"], sets, found, Path("nowhere"))
    assert [point.best for point in result.points] == [{"a": 2.0, "b": None if s == "mixed" else 1.0} for s in SCHEMES]
    assert {point.last["a"] for point in result.points} == {0.0} and result.errors == {
        "b": "on mixed, seed 0: it broke"
    }
    with pytest.raises(TelosError, match="no method finished"):
        judged(ENV, ["b"], sets, {task: {"error": "it broke"} for task in found if task[0] == "b"}, Path("nowhere"))


def test_the_command_prints_tables_and_goes_on(tmp_path, capsys):
    from telos.cli import main

    options = tmp_path / "options.json"
    options.write_text(json.dumps({"online": ONLINE, "wide": {"use": "bve", "hidden": [32]}, "bc": {"hidden": [8]}}))
    line = [
        "data", "study", "--env", ENV, "--methods", "bc,wide", "--steps", "3", "--transitions", "500", "--seeds", "1",
        "--out", str(tmp_path / "s"), "--device", "cpu", "--jobs", "1", "--discount", "0.8", "--evaluations", "3",
        "--episodes", "1", "--options", str(options),
    ]  # fmt: skip
    assert main(line) == 0
    first = capsys.readouterr()
    assert "replay  0 " in first.out and "Pearson's r over 5 data sets" in first.out and "10/10  wide" in first.err
    assert main([*line, "--json"]) == 0
    second = capsys.readouterr()
    table = json.loads(second.out)
    assert {point["scheme"] for point in table["points"]} == set(SCHEMES) and not second.err
    assert json.loads((tmp_path / "s" / "study.json").read_text())["settings"]["online"]["warmup"] == 200
    assert main([*line[:3], "Pendulum-v1", *line[4:]]) == 2 and "continuous actions" in capsys.readouterr().err
    assert main([*line[:5], "bc", *line[6:]]) == 2 and "has options for 'wide'" in capsys.readouterr().err
    assert main(["data", "study", "--env", ENV]) == 2 and "--methods" in capsys.readouterr().err
