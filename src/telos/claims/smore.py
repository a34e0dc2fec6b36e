"""SMORe's claim: scores join random walks to nearly shortest ways, at any share of expert episodes.

World: four rooms (dossier), tables and small networks; at standard scale the U-shaped point maze.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from telos.core.method import Method
from telos.core.registry import use
from telos.data.records import Transitions
from telos.judge.claim import Arm, Claim, Measures, Trial
from telos.judge.evaluate import evaluate
from telos.judge.plots import INK, PALETTE, figure, heading
from telos.judge.verdict import Better, Holds
from telos.methods.goals.smore import SMORe
from telos.methods.goals.smore_variants import policy, solve, solve_rewards
from telos.worlds import four_rooms as rooms
from telos.worlds import four_rooms_tables as tables
from telos.worlds import point_maze

EPISODES, LENGTH, LIMIT, DISCOUNT, HINDSIGHT = 200, 40, 30, 0.95, 0.8
SHARES = (0.0, 0.01, 0.05, 0.1)
"""Of episodes that an expert leads."""
STEPS = 2000
SEEN, WANTED = tuple(range(rooms.COUNT)), tuple(range(rooms.COUNT, 2 * rooms.COUNT))
NET = {"observation_columns": SEEN, "goal_columns": SEEN, "hidden": (64, 64), "batch_size": 256}
FAST, SLOW = {"learning_rate": 1e-2, "tau": 0.05}, {"learning_rate": 3e-3, "tau": 0.02}
DISCRIMINATOR = {
    "reward": "log_ratio", "current_goals": 0.0, "future_goals": 0.5, "expectile": 0.8,
}  # fmt: skip
MAZE_STEPS, MAZE_DISCOUNT = 5000, 0.95
MAZE = {
    "observation_columns": point_maze.STATE, "goal_columns": point_maze.POSITION, "hidden": (128, 128),
    "batch_size": 256, "learning_rate": 1e-3,
}  # fmt: skip
MAZE_VALUES = {**MAZE, "discount": MAZE_DISCOUNT, "tau": 0.02}
TABLES, NETS = ("optimum", "smore", "chi2", "code", "odds", "discriminator", "gcbc"), (
    "gciql_net", "smore_net", "discriminator_net", "gcbc_net",
)  # fmt: skip


def scored(steps: Tensor) -> dict[str, float]:
    """Success, and the discounted return of arriving after these steps (P,)."""
    there = steps <= LIMIT
    earned = torch.where(there, DISCOUNT ** (steps.double() - 1), 0.0)
    return {"success": float(there.double().mean()), "return": float(earned.mean())}


def shares(trial: Trial, expert: float) -> dict[str, Tensor]:
    """The seed's episodes as tables: steps with later goals (`hindsight`), `rho` and `q`, with recorded goals too."""
    cells, moves, goals = rooms.walks(trial.count(EPISODES), LENGTH, trial.rng.at("data"), expert)
    wanted = goals[:, None].expand_as(moves)
    where = (cells[:, :-1] * 4 + moves) * rooms.COUNT + wanted
    entered = cells[:, 1:] == wanted

    def share(picked: Tensor) -> Tensor:
        counts = torch.bincount(picked.flatten(), minlength=rooms.COUNT * 4 * rooms.COUNT).double()
        return (counts / max(1, picked.numel())).view(rooms.COUNT, 4, rooms.COUNT)

    hindsight, entering = tables.hindsight(cells, moves), tables.entering(cells, moves)
    return {
        "hindsight": hindsight, "rho": HINDSIGHT * hindsight + (1 - HINDSIGHT) * share(where),
        "q": HINDSIGHT * entering + (1 - HINDSIGHT) * share(where[entered]),
    }  # fmt: skip


def over_shares(measured: dict[float, dict[str, float]]) -> Measures:
    """What was measured at each share; what the parts name is that at the largest."""
    named = {f"{name}_{share:g}": value for share, row in measured.items() for name, value in row.items()}
    points = [{"share": share, **row} for share, row in measured.items()]
    return {**measured[SHARES[-1]], **named, "points": points}


def score_tables(trial: Trial, loss: str) -> Measures:
    """SMORe's fixed point with one of its losses."""
    method = use("smore", loss=loss, discount=DISCOUNT)
    assert isinstance(method, SMORe)
    measured = {}
    for share in SHARES:
        made = shares(trial, share)
        found = solve(method, made["rho"], made["q"], rooms.NEXT)
        measured[share] = moved(policy(found, made["rho"], method.temperature, method.advantage_clip))
    return over_shares(measured)


def without_q(trial: Trial) -> Measures:
    """The same without steps at goals, and whether all scores are the constant that the dual predicts."""
    method = use("smore", discount=DISCOUNT)
    made = shares(trial, SHARES[-1])
    found = solve(method, made["rho"], 0 * made["q"], rooms.NEXT)
    lowest = -method.bonus / (1 - DISCOUNT)
    collapsed = float((found.scores / lowest - 1).abs().max() < 1e-3)
    return {**moved(policy(found, made["rho"], method.temperature, method.advantage_clip)), "collapsed": collapsed}


def discriminator_tables(trial: Trial, pseudo_count: float, temperature: float) -> Measures:
    """IQL for every goal on the log-odds of q against rho, each count of a step and goal being raised."""
    measured = {}
    for share in SHARES:
        made, steps = shares(trial, share), trial.count(EPISODES) * LENGTH
        rewards = torch.log((steps * made["q"] + pseudo_count) / (steps * made["rho"] + pseudo_count))
        found = solve_rewards(rewards, made["rho"], rooms.NEXT, 0.8, DISCOUNT)
        measured[share] = moved(policy(found, made["rho"], temperature, 100.0))
    return over_shares(measured)


def clone_tables(trial: Trial) -> Measures:
    """The most frequent move in hindsight of each goal."""
    return over_shares({share: moved(shares(trial, share)["hindsight"]) for share in SHARES})


def shortest(trial: Trial) -> Measures:
    """The best that there is."""
    starts, goals = tables.pairs()
    best = scored(rooms.DISTANCES[starts, goals])
    return over_shares(dict.fromkeys(SHARES, best))


def moved(table: Tensor) -> dict[str, float]:
    """How the most preferred moves of a table do."""
    return scored(tables.walked(table, LIMIT))


def dataset(trial: Trial) -> Transitions:
    """The seed's episodes with the goal of each beside its states, all one-hot."""
    cells, moves, goals = rooms.walks(trial.count(EPISODES), LENGTH, trial.rng.at("data"), SHARES[-1])
    data = rooms.transitions(cells, moves)
    wanted = rooms.one_hot(goals).repeat_interleave(LENGTH, 0)
    return dataclasses.replace(
        data, observations=torch.cat([data.observations, wanted], -1),
        next_observations=torch.cat([data.next_observations, wanted], -1),
    )  # fmt: skip


def network(trial: Trial, method: Method) -> Measures:
    """A method as it is, asked for every pair of cells."""
    made = trial.fit(method, dataset(trial), steps=STEPS)
    every = torch.eye(rooms.COUNT)

    def act(cells: Tensor, goals: Tensor) -> Tensor:
        return made.act(torch.cat([every[cells], every[goals]], -1), goal=every[goals]).action

    return scored(rooms.reach(act, *tables.pairs(), LIMIT))


def above_on_each_seed(measures: Mapping[str, Measures]) -> dict[str, dict[str, float]]:
    """Whether the score's return is above cloning's at every share, on this seed."""
    ours, theirs = measures["smore"], measures["gcbc"]
    return {"smore": {"above": float(all(ours[f"return_{s:g}"] > theirs[f"return_{s:g}"] for s in SHARES))}}


def maze(trial: Trial, method: Method) -> Measures:
    """Learns from 500 episodes of 60 decisions; then 50 goals."""
    full = trial.budget == "full"
    data = point_maze.records(500 if full else 10, trial.rng.at("data"), expert=0.1)
    made = trial.fit(method, data, steps=MAZE_STEPS)
    count = 50 if full else 2
    seed = trial.rng.at("attempts").integer() % 2**31
    found = evaluate(made, point_maze.environment, episodes=count, seed=seed, goal="desired_goal")
    assert found.successes is not None
    earned = found.successes * MAZE_DISCOUNT ** (found.lengths - 1)
    return {"success": float(found.successes.mean()), "return": float(earned.mean())}


def picture(result: dict[str, Any], path: Path) -> None:
    """Returns of tables against the share of expert episodes, and of networks at the largest share."""
    arms = result["arms"]
    with figure(path, width=9.5, height=3.8, columns=2) as (drawn, axes):
        ax = axes[0, 0]
        for row, name in enumerate(TABLES):
            means = [arms[name]["summary"][f"return_{share:g}"]["mean"] for share in SHARES]
            # SMORe's losses lie on each other: a wide line, then a narrow and a dotted one.
            width, line = {"smore": (4, "-"), "chi2": (2, "-"), "code": (1.2, ":"), "optimum": (1.2, "--")}.get(
                name, (1.6, "-")
            )
            colour = INK if name in ("optimum", "code") else PALETTE[row]
            ax.plot(SHARES, means, line, lw=width, color=colour, label=arms[name]["label"])
        ax.set(xlabel="share of expert episodes", ylabel="discounted return, tables", ylim=(0.3, 0.85))
        ax.legend(fontsize=6.5, loc="lower left", ncols=2)
        ax = axes[0, 1]
        for row, name in enumerate(NETS):
            ax.barh(row, arms[name]["summary"]["return"]["mean"], 0.5, color=PALETTE[row], alpha=0.7)
            values = [run["measures"]["return"] for run in arms[name]["runs"]]
            ax.plot(values, [row] * len(values), ".", color=INK, ms=4)
        ax.set_yticks(range(len(NETS)), [arms[name]["label"] for name in NETS])
        ax.invert_yaxis()
        ax.set(xlabel="discounted return, networks, a dot a seed", xlim=(0, 0.85))
        ax.grid(axis="y", visible=False)
        heading(drawn, result, 9.5)


def tabular(run: Any, label: str, **options: Any) -> Arm:
    """An arm on tables."""
    return Arm(run, options, label=label)


def learnt(slug: str, label: str, **options: Any) -> Arm:
    """A network in the four rooms."""
    return Arm(network, {"method": use(slug, **NET, **options)}, label=label)


CLAIMS = {
    "laptop": Claim(
        statement="In four rooms, mostly from random walks, SMORe earns a discounted return that is .15 or more above "
        "that of cloning in hindsight and at most .06 below the optimum; no expert is needed. Without steps at goals "
        "it collapses to a constant. A small network keeps a lead over GC-BC.",
        source="main table; figure over shares of expert data",
        world="four rooms: 200 episodes of 40 steps, 0 to 10 % of them an expert's",
        parts=(
            Better("smore", "gcbc", "success", margin=0.2),
            Better("smore", "gcbc", "return", margin=0.15),
            Better("smore", "gcbc", "return_0", margin=0.15),
            Better("smore", "optimum", "return", margin=-0.06),
            Holds("above", "smore"),
            Holds("collapsed", "no_q"),
            Better("smore_net", "gcbc_net", "return"),
        ),
        arms={
            "smore": tabular(score_tables, "SMORe, stable", loss="stable"),
            "chi2": tabular(score_tables, "SMORe, chi2", loss="chi2"),
            "code": tabular(score_tables, "SMORe, code's first loss", loss="code_original"),
            "no_q": tabular(without_q, "SMORe without q"),
            "gcbc": tabular(clone_tables, "GC-BC"),
            "discriminator": tabular(
                discriminator_tables, "log-odds, half a count added", pseudo_count=0.5, temperature=3.0
            ),
            "odds": tabular(discriminator_tables, "log-odds, nearly exact", pseudo_count=1e-4, temperature=0.3),
            "optimum": tabular(shortest, "shortest ways"),
            "smore_net": learnt(
                "smore",
                "SMORe, network",
                desired_columns=WANTED,
                tolerance=1e-3,
                her_ratio=0.5,
                bonus=0.5,
                temperature=5.0,
                schedule="constant",
                discount=DISCOUNT,
                **FAST,
            ),
            "gciql_net": learnt("gciql", "GCIQL, network", discount=DISCOUNT, **SLOW),
            "discriminator_net": learnt("gciql", "discriminator, network", discount=DISCOUNT, **DISCRIMINATOR, **FAST),
            "gcbc_net": learnt(
                "stitching",
                "GC-BC, network",
                augment_prob=0.0,
                cluster_space="identity",
                scaling="none",
                learning_rate=3e-3,
            ),
        },
        seeds=tuple(range(10)),
        derive=above_on_each_seed,
        plot=picture,
        refuted_if="SMORe's discounted return is no higher than that of cloning.",
        metrics={
            "success": "share of all 1,560 pairs of cells whose goal is reached within 30 steps",
            "return": ".95^(steps - 1), 0 without success, mean over pairs; a tenth of the episodes an expert's",
            "return_0": "the same with random walks only",
            "above": "1 if the return is above cloning's at each of four shares of expert episodes",
            "collapsed": "1 if all scores are within .1 % of -2 / (1 - .95)",
        },
        minutes=4,
        notes=(
            "Tables: the fixed point of the method's own losses on the shares of (cell, move, goal) that its samplers "
            "draw: .8 goals in hindsight, .2 those recorded for the episode, which most walks never reach.",
            "Recorded goals matter: in hindsight alone a seventh of all pairs of cell and goal occurs in no episode, "
            "and scores fall to .9 success. Cloning has hindsight alone, which is better for it.",
            "The discriminator's reward is the log-odds of q against rho, learnt by counting; half a count added to "
            "each is the usual estimate. With nearly exact odds it comes close to SMORe: both are shown, not judged.",
            "Networks: 2 x 64 on one-hot cells, 2,000 updates. SMORe was tuned most (losses, learning rates .003 and "
            ".01, r = .5 with temperature 5, half of its goals recorded), the discriminator in three settings (random "
            "goals for half), GCIQL at two learning rates, GC-BC at three (.001, .003, .01: .46, .49, .48 on two "
            "seeds); only GC-BC is judged against. GCIQL, which ends a way at its goal, does better than SMORe.",
            "Developed on seeds 1000 and 1001, tables also on 1002 to 1004.",
        ),
    ),
    "standard": Claim(
        statement="In the U-shaped point maze, nine tenths of the records being random forces, SMORe earns a "
        "discounted return more than .05 above that of goal-conditioned cloning, with more success.",
        source="main table over offline goal-reaching tasks, a tenth of the episodes an expert's",
        world="gymnasium-robotics PointMaze_UMaze-v3: 500 scripted episodes of 60 decisions",
        parts=(
            Better("smore", "gcbc", "return", margin=0.05),
            Better("smore", "gcbc", "success"),
        ),
        arms={
            "smore": Arm(
                maze,
                {
                    "method": use(
                        "smore",
                        desired_columns=point_maze.DESIRED,
                        tolerance=point_maze.RADIUS,
                        her_ratio=0.5,
                        bonus=0.5,
                        temperature=5.0,
                        **MAZE_VALUES,
                    )
                },
                label="SMORe",
            ),
            "gcbc": Arm(maze, {"method": use("gcbc", **MAZE)}, label="GC-BC"),
            "gciql": Arm(maze, {"method": use("gciql", **MAZE_VALUES)}, label="GCIQL"),
            "discriminator": Arm(
                maze, {"method": use("gciql", beta=1.0, **DISCRIMINATOR, **MAZE_VALUES)}, label="discriminator, IQL"
            ),
        },
        seeds=tuple(range(5)),
        refuted_if="SMORe's discounted return is no higher than that of cloning.",
        metrics={
            "return": ".95^(decisions - 1), 0 without success, mean over 50 episodes with fresh starts and goals",
            "success": "share of episodes that come within .45 of the goal in 60 decisions",
        },
        minutes=15,
        notes=(
            "Records are ours: a controller that goes from cell to cell leads a tenth of the episodes, with noise; in "
            "the others forces are uniform, each held for 1 to 8 decisions. A decision is five steps of the simulator.",
            "Networks 2 x 128, 5,000 updates of 256 at 1e-3 for all; half of SMORe's goals are those recorded.",
            "Developed on seed 1000 alone: return .57, GC-BC .34, GCIQL .57; the discriminator was not run there.",
        ),
    ),
}
