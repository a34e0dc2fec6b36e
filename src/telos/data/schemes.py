"""Five schemes by which data sets of one environment are made: random, expert, mixed, noisy, replay.

They differ in how often a step takes a uniform action in the place of the expert's (arXiv 2111.04714; there "replay" is
what an online learner saw, here an expert whose share of random steps falls as that of a learner does).
telos.judge.study has such a learner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

from telos.core.errors import TelosError
from telos.data.environments import record
from telos.data.records import Transitions

if TYPE_CHECKING:
    import gymnasium as gym

    from telos.core.products import Policy

Scheme = Literal["random", "expert", "mixed", "noisy", "replay"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)


def random_share(scheme: Scheme, steps: int) -> Callable[[int], float]:
    """The probability of a uniform action at each step 0 .. steps - 1.

    Raises:
        TelosError: no such scheme.
    """
    shares: dict[str, Callable[[int], float]] = {
        "random": lambda step: 1.0,
        "expert": lambda step: 0.0,
        "mixed": lambda step: float(step < 0.8 * steps),
        "noisy": lambda step: 0.2,
        "replay": lambda step: max(0.01, 1 - 0.99 * step / (0.5 * steps)),
    }
    if scheme not in shares:
        raise TelosError(f"no scheme is called '{scheme}'", expected=", ".join(shares))
    return shares[scheme]


def generate(
    env: str | Callable[[], gym.Env[Any, Any]], scheme: Scheme, expert: Policy | None = None, *, steps: int = 10_000,
    seed: int = 0, origin: str | None = None,
) -> Transitions:  # fmt: skip
    """`steps` transitions of a Gymnasium environment, recorded by one of the schemes; see `environments.record`.

    Args:
        expert: needed by every scheme but "random".

    Raises:
        TelosError: no such scheme, no expert, an environment that cannot be used.
    """
    share = random_share(scheme, steps)
    if scheme == "random":
        return record(env, steps=steps, seed=seed, origin=origin)
    if expert is None:
        raise TelosError(
            f"the scheme '{scheme}' needs an expert", expected="a policy",
            fix="give one, as a saved run; `telos data study` learns one in the environment and makes all five",
        )  # fmt: skip
    random = None if scheme == "expert" else share
    return record(env, expert, steps=steps, seed=seed, random=random, origin=origin)
