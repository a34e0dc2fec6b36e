"""Gymnasium environments at the border of telos: making them, their spaces as ours, recording transitions."""

from __future__ import annotations

import importlib
import importlib.util
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.data.extras import extra
from telos.data.records import Box, Discrete, Transitions

if TYPE_CHECKING:
    import gymnasium as gym
    from gymnasium.vector import VectorEnv

    from telos.core.products import Policy

PACKAGES = ("gymnasium_robotics", "minigrid", "ogbench", "metaworld", "ale_py")
"""Packages that register their environments when they are imported; tried in turn for a name nobody knows yet."""


def make(env_id: str) -> gym.Env[Any, Any]:
    """The registered Gymnasium environment `env_id`.

    Raises:
        TelosError: an unknown name, or a package that the environment needs.
    """
    with extra("rl", f"environment '{env_id}'"):
        import gymnasium as gym
    if ":" in env_id:
        raise TelosError(
            f"environment '{env_id}' names a module to import", expected="the name of a registered environment",
            fix="import that module yourself, then give the name after the colon",
        )  # fmt: skip
    unknown: Exception | None = None
    for package in ("", *PACKAGES):
        if package and importlib.util.find_spec(package) is not None:
            importlib.import_module(package)
        try:
            return gym.make(env_id)
        except (gym.error.NameNotFound, gym.error.NamespaceNotFound) as error:
            unknown = error
        except (gym.error.DependencyNotInstalled, ImportError) as error:
            raise TelosError(
                f"environment '{env_id}' needs a package that is not installed", got=str(error),
                fix='pip install "telos[mujoco]" for MuJoCo, otherwise the package that the message names',
            ) from error  # fmt: skip
        except gym.error.Error as error:
            raise TelosError(f"environment '{env_id}' cannot be made", got=str(error), fix="check the name") from error
    raise TelosError(
        f"no environment is called '{env_id}'", got=str(unknown),
        fix="check the name, and that the package which registers it is installed "
        '(pip install "telos[mazes]" for those of gymnasium-robotics)',
    )  # fmt: skip


def open_vector(env: str | Callable[[], Any], count: int, processes: bool, where: str) -> VectorEnv[Any, Any, Any]:
    """`count` environments as one vector environment without automatic resets, or the one that `env` makes."""
    with extra("rl", where):
        import gymnasium as gym
        from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

    if not (isinstance(env, str) or callable(env)):
        raise TelosError(
            "'env' has the wrong type", expected="a registered name, or a function that makes environments",
            got=type(env).__name__, fix="pass a function that makes a new environment at each call",
        )  # fmt: skip
    first = make(env) if isinstance(env, str) else env()
    if isinstance(first, VectorEnv):
        return first
    if not isinstance(first, gym.Env):
        raise TelosError(f"{where}: the function makes no environment", expected="a gymnasium.Env",
                         got=type(first).__name__)  # fmt: skip
    action_space(first.action_space, where)

    def new() -> Any:
        return make(env) if isinstance(env, str) else env()

    if processes:
        first.close()
        return AsyncVectorEnv([new] * count, autoreset_mode=AutoresetMode.DISABLED)
    made = [first, *(new() for _ in range(count - 1))]
    if len({id(one.unwrapped) for one in made}) < count:
        raise TelosError(
            f"{where}: the function returns the same environment again", expected="a new one at each call",
            fix="make the environment inside the function, or pass vector=1",
        )  # fmt: skip
    return SyncVectorEnv([lambda one=one: one for one in made], autoreset_mode=AutoresetMode.DISABLED)


def action_space(space: gym.Space[Any], where: str) -> Box | Discrete:
    """A Gymnasium action space as ours. A Box of several dimensions is flattened; its bounds may be infinite.

    Raises:
        TelosError: a space that is neither a Box of floats nor Discrete.
    """
    import gymnasium as gym

    if isinstance(space, gym.spaces.Discrete):
        return Discrete(int(space.n))
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return Box(tuple(space.low.ravel().tolist()), tuple(space.high.ravel().tolist()))
    raise TelosError(
        f"{where}: the action space cannot be used", expected="a Box of floats or Discrete", got=str(space),
        fix="wrap the environment so that its actions are one vector of floats, or one integer",
    )  # fmt: skip


def bounded(space: Box | Discrete, where: str) -> Box | Discrete:
    """`space`, or a TelosError if a bound is infinite: methods and random policies need finite ones."""
    if isinstance(space, Box) and not np.isfinite([space.low, space.high]).all():
        raise TelosError(
            f"{where}: the action space has no bounds", expected="finite bounds", got=str(space),
            fix="give the range that the actions really use: action_low=..., action_high=...",
        )  # fmt: skip
    return space


def flatten(space: gym.Space[Any], values: Any, rows: int, where: str) -> np.ndarray:
    """Batched observations (or continuous actions) as (rows, O) float32.

    Boxes are laid out row by row, discrete values become one-hot, and the parts of a Dict are concatenated in the
    order of their names, which is Gymnasium's own flatten order (achieved_goal, desired_goal, observation).

    Raises:
        TelosError: text, graphs, sequences; values that do not fit the space.
    """
    import gymnasium as gym

    if isinstance(space, gym.spaces.Dict):
        parts = [flatten(space[name], values[name], rows, where) for name in sorted(space.keys())]
        return np.concatenate(parts, axis=1)
    if isinstance(space, gym.spaces.Tuple):
        parts = [flatten(inner, value, rows, where) for inner, value in zip(space.spaces, values)]
        return np.concatenate(parts, axis=1)
    try:
        if isinstance(space, gym.spaces.Discrete):
            return np.eye(int(space.n), dtype=np.float32)[np.asarray(values).reshape(rows) - int(space.start)]
        if isinstance(space, gym.spaces.Box | gym.spaces.MultiBinary):
            size = int(np.prod(space.shape))
            return np.array(values, dtype=np.float32).reshape(rows, size)
    except (ValueError, IndexError, TypeError) as error:
        raise TelosError(
            f"{where}: values do not fit their space", expected=f"{rows} values of {space}", got=str(error)
        ) from error
    raise TelosError(
        f"{where}: the space cannot be used", expected="Box, Discrete, MultiBinary, or a Dict of them",
        got=str(space), fix="wrap the environment so that it gives vectors",
    )  # fmt: skip


def env_actions(space: gym.Space[Any], actions: Tensor, rows: int, where: str) -> np.ndarray:
    """A policy's actions in the shape and type that the environment wants, (rows, *space.shape).

    Raises:
        TelosError: wrong shape, an action that is not finite or lies outside the space.
    """
    import gymnasium as gym

    array = actions.detach().cpu().numpy()
    if isinstance(space, gym.spaces.Discrete):
        shape, kinds, low, high = (rows,), "iu", 0, int(space.n) - 1
    else:
        assert isinstance(space, gym.spaces.Box)
        shape, kinds, low, high = (rows, int(np.prod(space.shape))), "f", space.low.ravel(), space.high.ravel()
    if array.shape != shape or array.dtype.kind not in kinds:
        raise TelosError(
            f"{where}: the policy's actions do not fit the environment's", got=f"{array.shape} {array.dtype}",
            expected=f"{shape} {'integers' if kinds == 'iu' else 'floats'}, for {space}",
            fix="use the environment that the policy was trained for",
        )  # fmt: skip
    slack = 1e-4 * np.minimum(np.subtract(high, low), 1e6) if kinds == "f" else 0
    bad = (~np.isfinite(array) | (array < low - slack) | (array > high + slack)).reshape(rows, -1).any(axis=1)
    if bad.any():
        raise TelosError(
            f"{where}: the policy acts outside the action space", expected=f"an action in {space}",
            got=str(array[int(bad.argmax())].tolist()), fix="use the environment that the policy was trained for",
        )  # fmt: skip
    if isinstance(space, gym.spaces.Discrete):
        return array + int(space.start)
    return np.clip(array, low, high).astype(space.dtype).reshape(rows, *space.shape)


def policy_device(policy: Policy) -> torch.device:
    """Where the policy's weights live."""
    return next((tensor.device for tensor in policy.state_dict().values()), torch.device("cpu"))


def record(
    env: str | Callable[[], gym.Env[Any, Any]], policy: Policy | None = None, *, steps: int = 10_000, seed: int = 0,
    explore: bool = False, random: Callable[[int], float] | None = None, origin: str | None = None,
) -> Transitions:  # fmt: skip
    """`steps` transitions of one environment, episode after episode.

    Args:
        env: a registered name, or a function that makes an environment.
        policy: acts; None draws actions uniformly from the action space.
        explore: whether the policy adds its exploration.
        random: step -> the probability of a uniform action in the place of the policy's.

    Returns:
        the transitions: the true last observation at each episode's end, time limits as `truncated` and not
        `terminated`; the last row is `truncated` if the recording stops within an episode. With `log_probs` where
        the policy gives them (stochastic ones that explore), and for uniform actions; without them given `random`.

    Raises:
        TelosError: an environment or an action space that cannot be used.
    """
    where = f"environment '{env}'" if isinstance(env, str) else "environment"
    made = make(env) if isinstance(env, str) else env()
    space = bounded(action_space(made.action_space, where), where)
    rng = Rng(seed).at("record")
    draws, generator = rng.at("actions").numpy(), None
    device = torch.device("cpu")
    uniform = -np.log(space.size) if isinstance(space, Discrete) else -np.log(np.subtract(space.high, space.low)).sum()
    if policy is not None:
        device = policy_device(policy)
        generator = rng.at("policy").torch(device)

    columns: defaultdict[str, list[Any]] = defaultdict(list)
    episode, state = 0, None
    raw, _ = made.reset(seed=rng.at("episode", 0).integer() % 2**31)
    observation = flatten(made.observation_space, raw, 1, where)
    for step in range(steps):
        log_prob = torch.tensor([uniform])
        if policy is not None and (random is None or draws.random() >= random(step)):
            with torch.no_grad():
                act = policy.act(torch.from_numpy(observation).to(device), state=state, rng=generator, explore=explore)
            action, state, log_prob = act.action.detach().cpu(), act.state, act.log_prob
        elif isinstance(space, Discrete):
            action = torch.from_numpy(draws.integers(space.size, size=1))
        else:
            action = torch.from_numpy(draws.uniform(space.low, space.high)[None].astype(np.float32))
        chosen = env_actions(made.action_space, action, 1, where)[0]
        raw, reward, terminated, truncated, _ = made.step(int(chosen) if isinstance(space, Discrete) else chosen)
        following = flatten(made.observation_space, raw, 1, where)
        for name, value in (
            ("observations", observation[0]), ("actions", action[0].numpy()), ("rewards", float(reward)),
            ("next_observations", following[0]), ("terminated", terminated), ("truncated", truncated),
        ):  # fmt: skip
            columns[name].append(value)
        if log_prob is not None and random is None:
            columns["log_probs"].append(float(log_prob))
        observation = following
        if terminated or truncated:
            episode, state = episode + 1, None
            raw, _ = made.reset(seed=rng.at("episode", episode).integer() % 2**31)
            observation = flatten(made.observation_space, raw, 1, where)
    made.close()
    if steps and not columns["terminated"][-1]:
        columns["truncated"][-1] = True
    return Transitions.validated(action_space=space, origin=origin, **columns)
