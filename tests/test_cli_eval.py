"""telos eval on a log of another policy's actions."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from telos.cli import main
from telos.core.rng import Rng
from telos.data.formats import save_npz
from telos.data.records import Discrete, Transitions
from telos.nets.policies import CategoricalPolicy, DeterministicPolicy

Telos = Callable[..., tuple[int, str, str]]


@pytest.fixture
def telos(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Telos:
    """Runs `telos eval` in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = main(["eval", *map(str, arguments), "--device", "cpu"])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """Two features, three actions, not far from uniform."""
    policy = CategoricalPolicy(2, 3, (), rng=Rng(1).torch())
    for parameter in policy.parameters():
        parameter.data *= 0.4
    return policy.save(tmp_path / "policy")


def log(folder: Path, shares: tuple[float, ...] = (0.3, 0.3, 0.4), n: int = 300, propensity: bool = True) -> Path:
    rng = Rng(2).numpy()
    x, actions = rng.standard_normal((n, 2)), rng.choice(3, size=n, p=shares)
    lines = ["x0,x1,action,reward" + ",propensity" * propensity]
    for (a, b), action in zip(x, actions, strict=True):
        lines.append(f"{a:.6f},{b:.6f},{action},{action + a:.6f}" + f",{shares[action]}" * propensity)
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    return folder / "log.csv"


def test_decisions(telos: Telos, policy: Path, tmp_path: Path):
    data = log(tmp_path)
    code, out, err = telos(policy, "--data", data)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines[1:-1]] == ["as", "ips", "snips", "direct", "doubly"]
    assert "300 decisions: mean reward of a decision" in out and "warning" not in out
    values = json.loads(telos(policy, "--data", data, "--json")[1])
    for name in ("ips", "snips", "direct", "doubly robust"):
        found = values["estimates"][name]
        assert found["low"] < found["estimate"] < found["high"] and 0 < found["estimate"] < 2
    assert values["warnings"] == [] and values["unit"] == "decisions" and values["data"] == str(data)
    assert f"{values['estimates']['ips']['estimate']:.4g}" in out
    clipped = json.loads(telos(policy, "--data", data, "--json", "--clip", "1.2")[1])
    assert 0 < clipped["support"]["clipped"] < 1
    assert "of weights clipped" in telos(policy, "--data", data, "--clip", "1.2")[1]
    greedy = json.loads(telos(policy, "--data", data, "--json", "--greedy")[1])
    assert greedy["greedy"] and greedy["estimates"]["ips"]["ess"] < values["estimates"]["ips"]["ess"]


def test_without_propensities(telos: Telos, policy: Path, tmp_path: Path):
    code, out, _ = telos(policy, "--data", log(tmp_path, propensity=False))
    assert code == 0 and "no propensities" in out
    values = json.loads(telos(policy, "--data", tmp_path / "log.csv", "--json")[1])
    assert list(values["estimates"]) == ["direct"] and set(values["skipped"]) == {"ips", "snips", "doubly robust"}


def test_warnings_come_first_and_the_code_is_0(telos: Telos, policy: Path, tmp_path: Path):
    data = f"{log(tmp_path, (0.5, 0.5, 0.0))}?actions=0,1,2"
    code, out, _ = telos(policy, "--data", data)
    assert code == 0 and out.startswith("warning: ") and "actions that the log never has" in out
    values = json.loads(telos(policy, "--data", data, "--json")[1])
    assert values["warnings"] and values["support"]["never_taken"] > 0.05


def test_episodes(telos: Telos, policy: Path, tmp_path: Path):
    n, rng = 400, Rng(3).numpy()
    observations = rng.standard_normal((n, 2))
    data = Transitions.validated(
        observations=observations, next_observations=np.roll(observations, -1, 0), actions=rng.integers(3, size=n),
        rewards=rng.random(n), terminated=np.arange(n) % 4 == 3, truncated=np.zeros(n, bool),
        action_space=Discrete(3), log_probs=np.full(n, -np.log(3)),
    )  # fmt: skip
    file = save_npz(data, tmp_path / "log.npz")
    code, out, err = telos(policy, "--data", file, "--discount", "0.9")
    assert (code, err) == (0, ""), out
    assert [line.split()[0] for line in out.splitlines()[1:5]] == ["as", "pdis", "snpdis", "fitted"]
    assert "100 episodes: return of an episode, discount 0.9" in out
    values = json.loads(telos(policy, "--data", file, "--discount", "0.9", "--json")[1])
    # Rewards of 1/2 on average whatever is done. Four steps; fitted q cannot see the step and ends one time in four.
    for name, value in (("pdis", 0.5 * (1 - 0.9**4) / 0.1), ("snpdis", 1.72), ("fitted q", 0.5 / (1 - 0.9 * 0.75))):
        assert abs(values["estimates"][name]["estimate"] - value) < 0.25, name
    continuous = DeterministicPolicy(2, (-1.0,), (1.0,), ()).save(tmp_path / "continuous")
    code, _, err = telos(continuous, "--data", file)
    assert code == 2 and "actions do not fit the policy" in err


def test_errors(telos: Telos, policy: Path, tmp_path: Path):
    assert "--env, or --data" in telos(policy)[2]
    assert "in two ways" in telos(policy, "--env", "Pendulum-v1", "--data", "log.csv")[2]
    for arguments, message in (
        (("--data", "missing.csv"), "missing.csv"),
        (("--data", log(tmp_path), "--clip", "-1"), "clip > 0"),
        (("--data", log(tmp_path), "--discount", "1.5"), "discount <= 1"),
        (("--data", f"{log(tmp_path)}?context=x0"), "observations do not fit"),
    ):
        code, out, err = telos(policy, *arguments)
        assert (code, out) == (2, "") and message in err, err
