"""Advice: what is measured leads to the methods that suit, with numbers, verdicts and limits."""

import json

import numpy as np
import pytest

import telos
from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.data.formats import save_npz
from telos.data.records import Box, Demonstrations, Discrete, LoggedBandit, Preferences, Transitions
from telos.judge.advise import ADVISERS, AGAINST_PAIRS, DECISIONS, PAIRS, SUITED, UNSUITED, advise


def walks(space, rewards, episodes=40, length=10, states=4):
    """Random walks; `rewards` (episode, step, draw) -> a reward."""
    draw = Rng(1000).at("walks").numpy()
    rows = [(e, t, draw.integers(states), draw.random()) for e in range(episodes) for t in range(length)]
    seen = np.eye(states)[[row[2] for row in rows]]
    discrete = isinstance(space, Discrete)
    return Transitions.validated(
        observations=seen, next_observations=np.roll(seen, -1, 0),
        actions=draw.integers(0, space.size, len(rows)) if discrete else draw.uniform(-1, 1, (len(rows), space.size)),
        rewards=[rewards(e, t, x) for e, t, _, x in rows], terminated=np.zeros(len(rows), bool),
        truncated=[t == length - 1 for _, t, _, _ in rows], action_space=space,
    )  # fmt: skip


PLANE = Box((-1.0, -1.0), (1.0, 1.0))


def slugs(suggestions):
    return [one.slug for one in suggestions]


def test_mixed_continuous_records_lead_to_constrained_values():
    found = advise(walks(PLANE, lambda e, t, x: e / 40))
    assert slugs(found.suited)[:3] == ["a2pr", "prdc", "iql"] and "bc" in slugs(found.suited)
    assert found.suited[0].verdict == "confirmed" and "50% of" in found.suited[0].reason
    assert slugs(found.unsuited) == ["dqn", "bcq"] and "continuous" in found.unsuited[0].reason


def test_good_records_lead_to_imitation_first():
    found = advise(walks(Discrete(3), lambda e, t, x: float(e > 0)))
    assert found.suited[0].slug == "bc" and "98%" in found.suited[0].reason
    assert "dqn" in slugs(found.unsuited) and "bcq" not in slugs(found.suited)


def test_mixed_discrete_records_lead_to_discrete_methods():
    found = advise(walks(Discrete(3), lambda e, t, x: e / 40))
    assert {"bcq", "cql", "crr"} <= set(slugs(found.suited)) and not {"iql", "a2pr"} & set(slugs(found.suited))
    assert "actions are discrete" in next(one.reason for one in found.unsuited if one.slug == "iql")


def test_records_without_rewards_lead_to_goals():
    found = advise(walks(PLANE, lambda e, t, x: 0.0))
    assert {"stitching", "gcbc", "hilp", "beso"} <= set(slugs(found.suited)) and "iql" not in slugs(found.suited)


def test_luck_is_seen_where_pairs_repeat():
    lucky = advise(walks(Discrete(2), lambda e, t, x: float(x < 0.3)))
    assert "doc" in slugs(lucky.suited) and lucky.measured["other outcomes of repeated pairs"] > 0.3
    assert "other outcomes of repeated pairs" not in advise(walks(PLANE, lambda e, t, x: x)).measured


def pairs(cyclic, length=False):
    """Three answers of each prompt, all compared: in a ring, or in an order."""
    rows = []
    for number in range(80):
        for winner, loser in (("a", "b"), ("b", "c"), ("c", "a") if cyclic else ("a", "c")):
            rows.append((f"q{number}", f"{winner} says" + (" so at length" if length else ""), f"{loser} says"))
    return Preferences(*map(list, zip(*rows, strict=True)))


def test_cyclic_preferences_lead_to_games_and_away_from_a_reward():
    ring, order = advise(pairs(True)), advise(pairs(False))
    assert slugs(ring.suited)[:3] == ["inpo", "dno", "nash_md"] and slugs(ring.unsuited) == ["reward_model"]
    assert slugs(order.suited)[0] == "dpo" and not order.unsuited and "inpo" not in slugs(order.suited)


def test_length_and_noise_change_what_is_said_of_dpo():
    long = advise(pairs(False, length=True))
    assert long.suited[0].options == "--average-log-probs" and "longer" in long.suited[0].reason
    texts = pairs(False)
    flipped = Preferences(
        [*texts.prompts] * 6, [*texts.chosen] * 5 + [*texts.rejected], [*texts.rejected] * 5 + [*texts.chosen]
    )
    noisy = advise(flipped)
    # Two of six judgements differ with probability 1/3, so p (1 - p) = 1/6.
    assert noisy.measured["so labels are wrong with probability"] == pytest.approx(0.2113, abs=1e-3)
    assert "--loss cdpo" in noisy.suited[0].options and "rm_ensembles" in slugs(noisy.suited)


def test_decisions_name_what_the_log_lacks():
    log = LoggedBandit.validated(contexts=np.zeros((50, 1)), actions=[0, 1] * 25, rewards=np.zeros(50), n_actions=3)
    found = advise(log)
    assert slugs(found.suited) == ["squarecb_adyen"] and found.measured["actions never taken"] == 1
    assert any("log the probability" in text for text in found.unknown)


def test_every_rule_names_methods_that_exist_and_other_records_are_refused():
    from telos.core.registry import entries

    for rules in (SUITED, UNSUITED, DECISIONS, PAIRS, AGAINST_PAIRS):
        assert {slug for rule in rules for slug in rule.slugs} <= set(entries())
    assert set(ADVISERS) == {Transitions, LoggedBandit, Preferences}
    with pytest.raises(TelosError, match="no advice on Demonstrations"):
        telos.advise(Demonstrations(["a"], ["b"]))


def test_the_command_prints_reasons_and_a_line_that_runs(tmp_path, capsys):
    from telos.cli import main

    data = str(save_npz(walks(PLANE, lambda e, t, x: e / 40), tmp_path / "walks.npz"))
    assert main(["advise", data]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Not known from these data" in text and "--methods a2pr,prdc,iql --steps N" in text
    assert main(["advise", data, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["kind"] == "Transitions" and values["suited"][0]["slug"] == "a2pr"
    assert main(["advise", str(tmp_path / "none.npz")]) == 2
