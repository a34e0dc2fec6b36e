"""Comparisons on the user's own data: who leads, what is said about trust, and what happens after a kill."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import telos
from telos.core.errors import TelosError
from telos.core.products import Policy
from telos.core.rng import Rng
from telos.data.formats import save_npz
from telos.data.records import Demonstrations, Discrete, LoggedBandit, Preferences, Transitions
from telos.judge.compare import CLONE, accuracy, apart, calibration, compare, cut, names, ranking, row
from telos.worlds import tiny_sent

CELLS, LENGTH = 5, 12


def chain(episodes=120, wrong=0.5):
    """Cells in a row, one-hot; action 1 goes right, 0 left; the last cell pays 1 and ends. Walks are half random."""
    draw = Rng(1000).at("chain").numpy()
    rows = []
    for _ in range(episodes):
        cell = 0
        for step in range(LENGTH):
            action = int(draw.random() > wrong)
            after = min(CELLS - 1, cell + 1) if action else max(0, cell - 1)
            done = after == CELLS - 1
            rows.append((cell, action, float(done), after, done, not done and step == LENGTH - 1))
            cell = after
            if done:
                break
    cell, action, reward, after, done, cut = map(np.array, zip(*rows, strict=True))
    eye = np.eye(CELLS)
    return Transitions.validated(
        observations=eye[cell], actions=action, rewards=reward, next_observations=eye[after], terminated=done,
        truncated=cut, action_space=Discrete(2),
    )  # fmt: skip


def dqn():
    return telos.use("dqn", hidden=(32,), learning_rate=3e-3, discount=0.9, target_every=10)


def bc():
    return telos.use("bc", hidden=(16,), learning_rate=3e-3)


OPTIONS = {"steps": 150, "seeds": 2, "discount": 0.9, "device": "cpu", "jobs": 1, "said": lambda text: None}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "whole"
    return compare(chain(), {"clone": bc(), "values": dqn()}, out=folder, **OPTIONS)


def test_without_an_environment_the_estimates_rank_and_know_their_limits(finished):
    first, second = finished.rows
    assert (first.name, second.name) == ("values", "clone")
    # Four steps to the right: 0.9 ** 3 at best. Cloning goes half the time to the left, greedily one way everywhere.
    assert first.mean == pytest.approx(0.9**3, abs=0.05)
    assert first.behind is None and second.behind.estimate == pytest.approx(first.mean - second.mean)
    assert len(first.scores) == 2 and all(seconds > 0 for seconds in first.seconds)
    assert finished.control.name == CLONE and finished.control not in finished.rows
    text = " ".join(finished.trust)
    assert "2 seeds: an indication" in text and "Nobody acted" in text and "clone of the logging policy" in text
    earned = finished.control.mean
    assert 0.1 < earned < 0.6


def test_the_best_product_is_saved_and_the_picture_and_table_stand_beside_it(finished):
    policy = finished.best()
    assert isinstance(policy, Policy)
    assert policy.act(torch.eye(CELLS)[: CELLS - 1]).action.tolist() == [1] * (CELLS - 1)
    table = json.loads((finished.folder / "comparison.json").read_text())["table"]
    assert [line["name"] for line in table["rows"]] == ["values", "clone", CLONE]
    assert table["rows"][0]["scores"] == list(finished.rows[0].scores)
    assert not pytest.importorskip("matplotlib") or (finished.folder / "figure.png").stat().st_size > 5000


def test_after_a_stop_the_same_call_goes_on_and_comes_out_the_same(finished, tmp_path):
    heard = []

    def stop(text):
        heard.append(text)
        raise KeyboardInterrupt

    methods = {"clone": bc(), "values": dqn()}
    with pytest.raises(KeyboardInterrupt):
        compare(chain(), methods, out=tmp_path / "c", **{**OPTIONS, "said": stop})
    kept = sorted((tmp_path / "c" / "runs").glob("*/seed-*.json"))
    assert 1 <= len(kept) < 6
    written = {path: path.stat().st_mtime_ns for path in kept}
    again = compare(chain(), methods, out=tmp_path / "c", **{**OPTIONS, "jobs": 2})
    assert {path: path.stat().st_mtime_ns for path in kept} == written
    assert [line.scores for line in again.rows] == [line.scores for line in finished.rows]


def test_other_settings_and_strange_folders_are_refused(finished, tmp_path):
    with pytest.raises(TelosError, match="another comparison: its settings differ"):
        compare(chain(), {"clone": bc(), "values": dqn()}, out=finished.folder, **{**OPTIONS, "steps": 151})
    with pytest.raises(TelosError, match="another comparison: its methods differ"):
        compare(chain(), {"clone": bc()}, out=finished.folder, **OPTIONS)
    with pytest.raises(TelosError, match="fingerprint differ"):
        compare(chain(60), {"clone": bc(), "values": dqn()}, out=finished.folder, **OPTIONS)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(TelosError, match="is not empty"):
        compare(chain(), {"clone": bc()}, out=tmp_path, **OPTIONS)


def test_a_method_that_fails_leaves_the_others_alone(tmp_path):
    result = compare(chain(30), ["iql", "bc"], out=tmp_path / "c", **{**OPTIONS, "steps": 5, "seeds": 1})
    assert [line.name for line in result.rows] == ["bc", "iql"]
    assert "continuous actions" in result.rows[1].error and result.rows[1].scores == ()
    with pytest.raises(TelosError, match="no method finished"):
        compare(chain(30), ["iql"], out=tmp_path / "d", **{**OPTIONS, "steps": 5, "seeds": 1})


def test_what_cannot_be_compared_is_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "c"
    with pytest.raises(TelosError, match="dpo does not learn from Transitions"):
        compare(chain(5), ["bc", "dpo"], out=out, **OPTIONS)
    with pytest.raises(TelosError, match="two methods are called 'bc'"):
        compare(chain(5), ["bc", bc()], out=out, **OPTIONS)
    with pytest.raises(TelosError, match="nothing to compare"):
        compare(chain(5), [], out=out, **OPTIONS)
    with pytest.raises(TelosError, match="share that is held out"):
        compare(chain(5), ["bc"], out=out, **{**OPTIONS, "held_out": 0.0})
    with pytest.raises(TelosError, match="cannot be judged in an environment"):
        compare(Preferences(["a"] * 2, ["b"] * 2, ["c"] * 2), ["dpo"], env="X-v0", out=out, **OPTIONS)
    assert not out.exists()


def test_methods_that_learn_from_environments_learn_from_data_that_they_accept():
    assert list(names(["dqn", "sac"], chain(5))) == ["dqn", "sac"]
    with pytest.raises(TelosError, match=r"sac does not learn from Preferences(.|\n)*expected: Transitions"):
        names(["sac"], Preferences(["a"] * 2, ["b"] * 2, ["c"] * 2))


def test_only_what_differs_is_named():
    assert apart({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4, "d": 3}, "e": 5}) == (
        {"b": {"c": 2}, "e": None}, {"b": {"c": 4}, "e": 5},
    )  # fmt: skip
    assert apart("x", "y") == ("x", "y")


def test_the_calibration_compares_the_clone_with_what_was_earned():
    def judged(scores):
        found = {(CLONE, seed): {"score": s, "seconds": 1.0, "warnings": []} for seed, s in enumerate(scores)}
        return row(CLONE, found, {}, len(scores))

    def earned(*values, cut=0.0):
        return [{"logged": {"value": value}, "cut": cut} for value in values]

    assert "no bias is seen" in calibration(judged([1.1, 1.9, 3.1]), earned(1.0, 2.0, 3.0))
    text = calibration(judged([2.0, 3.1, 4.05]), earned(1.0, 2.0, 3.0))
    assert "off by 1.05" in text and "time limits" not in text
    # A tenth of the value comes after the cut: 10 / 0.9 is as good an answer as 10, and 12 is none.
    cut_off = earned(9.9, 10.0, 10.1, cut=0.1)
    assert "no bias" in calibration(judged([11.0, 11.1, 11.2]), cut_off)
    assert "about 11.11 with what comes after" in calibration(judged([12.0, 12.1, 12.2]), cut_off)
    assert "off by" in calibration(judged([12.0, 12.1, 12.2]), cut_off)


def test_what_time_limits_cut_counts_with_its_discount():
    data = chain(20)
    ends = (data.terminated | data.truncated).nonzero()[:, 0]
    lengths = torch.diff(ends, prepend=torch.tensor([-1]))
    expected = sum(0.9 ** int(n) for n, end in zip(lengths, ends, strict=True) if data.truncated[end]) / len(ends)
    assert 0 < expected < 0.3 and cut(data, 0.9) == pytest.approx(expected)


def test_ranking_pairs_seeds_with_the_leader():
    def line(name, *scores):
        return row(
            name, {(name, s): {"score": v, "seconds": 1.0, "warnings": ["w"]} for s, v in enumerate(scores)}, {}, 3
        )

    lines = ranking([line("low", 0.0, 1.0, 2.0), row("broken", {}, {"broken": "why"}, 3), line("high", 1.0, 2.0, 3.0)])
    assert [one.name for one in lines] == ["high", "low", "broken"]
    # The seeds differ by 1 each time: a paired interval without width.
    assert (lines[1].behind.low, lines[1].behind.high) == (1.0, 1.0) and lines[1].warnings == ("w",)


def test_in_an_environment_whole_episodes_judge(tmp_path):
    pytest.importorskip("gymnasium")
    result = telos.compare(
        "gym:CartPole-v1?steps=300", ["bc"], env="CartPole-v1", episodes=2, out=tmp_path / "c",
        **{**OPTIONS, "steps": 2, "seeds": 1},
    )  # fmt: skip
    assert result.control is None and 1 <= result.rows[0].mean <= 500
    assert result.metric == "mean return of 2 episodes of CartPole-v1"


def test_pairs_judge_reward_models_and_policies_by_accuracy(tmp_path):
    prompts = sorted(set(tiny_sent.prompts(40, Rng(1000).numpy())))
    pairs = Preferences(prompts, [" good0"] * len(prompts), [" bad0"] * len(prompts))
    shared = {"learning_rate": 1e-3, "batch_size": 8, "warmup_steps": 0}
    methods = {"dpo": telos.use("dpo", **shared), "reward": telos.use("reward_model", **shared)}
    result = compare(pairs, methods, model="telos:tiny", out=tmp_path / "c", **{**OPTIONS, "steps": 20})
    assert {line.name: line.mean for line in result.rows} == {"dpo": 1.0, "reward": 1.0}
    assert "Accuracy says" in " ".join(result.trust)
    policy = telos.use("dpo", **shared).fit(pairs, model="telos:tiny", steps=1, device="cpu")
    assert accuracy(policy, pairs, {"model": policy.model}) == 0.5  # compared with itself, all are ties


def test_logged_decisions_are_judged_on_the_later_ones(tmp_path):
    draw = Rng(1000).at("log").numpy()
    contexts = draw.standard_normal((400, 2))
    actions = draw.integers(0, 2, 400)
    log = LoggedBandit.validated(
        contexts=contexts, actions=actions, rewards=(actions == (contexts[:, 0] > 0)).astype(float),
        propensities=np.full(400, 0.5), n_actions=2,
    )  # fmt: skip
    result = compare(log, ["squarecb_adyen"], out=tmp_path / "c", **{**OPTIONS, "steps": 30, "seeds": 1})
    assert result.rows[0].mean > 0.6 and result.control is None


def test_the_command_prints_the_table_and_goes_on(tmp_path, capsys):
    from telos.cli import main

    data = save_npz(chain(40), tmp_path / "chain.npz")
    options = tmp_path / "options.json"
    options.write_text(json.dumps({"narrow": {"use": "bc", "hidden": [4]}}))
    line = [
        "compare", "--data", str(data), "--methods", "bc,narrow", "--options", str(options), "--steps", "3", "--seeds",
        "2", "--out", str(tmp_path / "c"), "--device", "cpu", "--jobs", "1", "--discount", "0.9",
    ]  # fmt: skip
    assert main(line) == 0
    first = capsys.readouterr()
    assert "narrow" in first.out and "Nobody acted" in first.out and "6/6" in first.err
    assert main([*line, "--json"]) == 0
    second = capsys.readouterr()
    assert {one["name"] for one in json.loads(second.out)["rows"]} == {"bc", "narrow", CLONE} and not second.err
    assert main([*line[:4], "bc,bc", *line[5:]]) == 2 and "named twice" in capsys.readouterr().err
    assert main([*line[:4], "bc", *line[5:]]) == 2 and "has options for 'narrow'" in capsys.readouterr().err


def test_texts_without_pairs_are_refused():
    with pytest.raises(TelosError, match="Demonstrations cannot be split"):
        compare(Demonstrations(["a"] * 4, ["b"] * 4), ["sft"], out="never", **OPTIONS)


def test_goal_policies_are_judged_by_goals_that_stand_in_the_records(tmp_path):
    # The chain, with a goal beside what is observed: every other episode its paying cell, else the first one.
    plain = chain()
    ends = (plain.terminated | plain.truncated).long()
    there = ((ends.cumsum(0) - ends) % 2).bool()[:, None]
    goals = torch.where(there, torch.eye(CELLS)[CELLS - 1], torch.eye(CELLS)[0])
    data = replace(
        plain, observations=torch.cat([plain.observations, goals], 1),
        next_observations=torch.cat([plain.next_observations, goals], 1),
    )  # fmt: skip
    columns = {"observation_columns": tuple(range(CELLS)), "goal_columns": tuple(range(CELLS))}
    method = telos.use("gc_td3", hidden=(32,), learning_rate=1e-2, discount=0.8, tau=0.1, batch_size=64, **columns)
    where = ",".join(str(CELLS + cell) for cell in range(CELLS))
    compared = compare(data, {"goals": method, "clone": bc()}, out=tmp_path / "c", goal=where, **OPTIONS)
    (scores,) = (line.scores for line in compared.rows if line.name == "goals")
    # Told the paying cell it goes there, 3 steps without pay; told the first cell it stays: half of 0.9^3.
    assert scores == pytest.approx([0.9**3 / 2] * 2, abs=0.08)
    with pytest.raises(TelosError, match="no such column"):
        compare(data, {"goals": method}, out=tmp_path / "d", goal="99", **OPTIONS)
