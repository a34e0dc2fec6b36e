"""Transitions from files: Minari data sets, HDF5 in D4RL's layout, .npz with our own column names.

Rows, steps and episodes are counted from 0, as in the arrays. Options that all of them read:
action_low, action_high (one number, or one for each dimension), n_actions (discrete actions), and clip_actions=true,
which moves actions into the bounds instead of refusing them. Log-probs of the logged actions are read where they are:
an array log_probs, D4RL's infos/action_log_probs, or those names among a Minari data set's infos. A .npz may also
hold auxiliary_rewards (N, m-1), further responses beside the main one in rewards, and texts: auxiliary_names (m-1),
observation_names (O), action_names.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from telos.core.errors import TelosError
from telos.core.files import write_atomic
from telos.data import npz_files
from telos.data.environments import action_space, bounded, flatten, record
from telos.data.extras import extra
from telos.data.options import Options
from telos.data.records import Box, Discrete, Transitions, check_actions
from telos.data.schemes import Scheme, generate

COLUMNS = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")
LOG_PROBS = ("log_probs", "infos/action_log_probs")
AUXILIARY = "auxiliary_rewards"
NAMES = ("auxiliary_names", "observation_names", "action_names")
ACTION_OPTIONS = ("action_low", "action_high", "n_actions", "clip_actions")
MINARI_FILE = "main_data.hdf5"


def save_npz(transitions: Transitions, path: str | Path) -> Path:
    """Writes transitions as one .npz that `telos.load` reads: the columns and the action space; whole or not at all.

    Raises:
        TelosError: another suffix, no permission, full disk.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise TelosError(f"cannot write {path}", expected="a name that ends in .npz", fix=f"{path}.npz")
    space = transitions.action_space
    if isinstance(space, Discrete):
        bounds = {"n_actions": np.array(space.size)}
    else:
        bounds = {"action_low": np.array(space.low), "action_high": np.array(space.high)}
    arrays = {name: column.cpu().numpy() for name, column in transitions.columns().items()}
    if "auxiliary" in arrays:
        arrays[AUXILIARY] = arrays.pop("auxiliary")
    names = {name: np.array(given) for name in NAMES if (given := getattr(transitions, name))}

    return write_atomic(path, lambda temporary: npz_files.save(temporary, {**arrays, **names, **bounds}))


def load_npz(path: Path, options: Options) -> Transitions:
    """A .npz with our column names and n_actions, or action_low and action_high (A,)."""
    options.only(*ACTION_OPTIONS)
    try:
        with np.load(path, allow_pickle=False) as file:
            known = [*COLUMNS, "log_probs", AUXILIARY, *NAMES, *ACTION_OPTIONS[:3]]
            arrays = {name: npz_files.read(path, file, name) for name in file.files if name in known}
            present = sorted(file.files)
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise TelosError(
            f"{path} cannot be read", expected="a whole .npz of plain number arrays", got=str(error),
            fix="write or download the file again (telos.data.rl_formats.save_npz writes such files)",
        ) from error  # fmt: skip
    for name in COLUMNS:
        need_column(arrays, name, path, present)
    columns: dict[str, Any] = {name: value for name, value in arrays.items() if name in (*COLUMNS, "log_probs")}
    if AUXILIARY in arrays:
        columns["auxiliary"] = arrays.pop(AUXILIARY)
    columns |= {name: arrays.pop(name).ravel().astype(str).tolist() for name in NAMES if name in arrays}
    stored = {name: np.asarray(value).ravel() for name, value in arrays.items() if name not in columns}
    space = given_space(options, stored, width_of(arrays["actions"]))
    if space is None:
        raise TelosError(
            f"{path}: the action space is missing", expected="arrays action_low and action_high, or n_actions",
            fix="add them to the file, or as options: ?action_low=-1&action_high=1, or ?n_actions=4",
        )  # fmt: skip
    return finished(columns, space, path, options)


def load_hdf5(path: Path, options: Options) -> Transitions:
    """HDF5 in D4RL's layout: observations, actions, rewards, terminals, timeouts and, if there, next_observations.

    Without next_observations they are the following row of the same episode. An episode's last step has none: where
    it was terminal the row is kept with its own observation in that place (nothing is bootstrapped from it), where
    it was cut (a timeout, the end of the file) the row is dropped and the one before becomes `truncated`.
    Actions are in [-1, 1] unless options say otherwise, as D4RL has them. Other entries (infos/...) are ignored.
    """
    with extra("rl", str(path)):
        import h5py
    needed = ("observations", "actions", "rewards", "terminals", "timeouts")
    try:
        with h5py.File(path, "r") as file:
            if "episode_0" in file:
                raise TelosError(
                    f"{path} is the data file of a Minari data set", expected="its folder, with metadata.json",
                    fix="give the folder that holds data/metadata.json and this file",
                )  # fmt: skip
            arrays = {}
            for name in (*needed, "next_observations", *LOG_PROBS):
                if name in needed:
                    need_column(file, name, path, sorted(file))
                if name in file:
                    entry = file[name]
                    if not isinstance(entry, h5py.Dataset):
                        raise TelosError(f"{path}: column '{name}' is a group", expected="an array of numbers")
                    arrays[name] = np.asarray(entry[()])
    except PermissionError:
        raise
    except (OSError, RuntimeError, KeyError) as error:
        raise TelosError(
            f"{path} cannot be read", expected="a whole HDF5 file", got=str(error),
            fix="download or write the file again",
        ) from error  # fmt: skip
    options.only(*ACTION_OPTIONS)
    recorded = arrays.pop(LOG_PROBS[1], None)
    if usable(recorded, len(arrays["rewards"])):
        arrays.setdefault("log_probs", recorded)
    # Rows are dropped below, so faults are named here, where their row is still the file's.
    check_columns(arrays, path)
    terminated, truncated = (arrays[name].reshape(-1).astype(bool) for name in ("terminals", "timeouts"))
    columns = {name: arrays[name] for name in ("observations", "actions", "rewards", "log_probs") if name in arrays}
    if "next_observations" in arrays:
        truncated[-1] |= not terminated[-1]
        columns |= {"next_observations": arrays["next_observations"], "terminated": terminated, "truncated": truncated}
    else:
        columns = shifted(columns, terminated, truncated)
    space = given_space(options, {}, width_of(arrays["actions"])) or Box(
        (-1.0,) * width_of(arrays["actions"]), (1.0,) * width_of(arrays["actions"])
    )
    return finished(columns, space, path, options)


def shifted(columns: Mapping[str, np.ndarray], terminated: np.ndarray, timeouts: np.ndarray) -> dict[str, np.ndarray]:
    """Adds next_observations, terminated, truncated to rows that lack next observations; see `load_hdf5`."""
    observations = columns["observations"]
    ends = terminated | timeouts
    ends[-1] = True
    following = np.concatenate([observations[1:], observations[-1:]])
    following[ends] = observations[ends]
    keep = terminated | ~ends
    truncated = ~ends & ~np.append(keep[1:], True)
    whole = {**columns, "next_observations": following, "terminated": terminated, "truncated": truncated}
    return {name: column[keep] for name, column in whole.items()}


def load_minari(what: str | Path, options: Options) -> Transitions:
    """A Minari data set by id (looked for on this machine, then downloaded) or by folder.

    Its episodes have one observation more than steps. Dict observations (goal environments) become one vector, see
    `telos.data.environments.flatten`; the action space is the data set's own unless options say otherwise.
    """
    with extra("rl", f"Minari data set '{what}'"):
        import minari
    options.only(*ACTION_OPTIONS)
    name = str(what) if isinstance(what, Path) else f"minari:{what}"
    try:
        if isinstance(what, Path):
            data = minari.MinariDataset(what)
        else:
            data = minari.load_dataset(what, download=True)
        metadata = data.storage.metadata
        observations, actions = metadata["observation_space"], metadata["action_space"]
    except PermissionError:
        raise
    # Minari raises whatever its storage, the hub's client or the environment's constructor raise.
    except Exception as error:
        local = isinstance(what, Path)
        raise TelosError(
            f"{name} cannot be read" if local else f"{name} is not on this machine and cannot be downloaded",
            expected="a Minari data set", got=f"{type(error).__name__}: {error}",
            fix="write or download it again" if local else f"`minari download {what}` where there is a network",
        ) from error  # fmt: skip

    space = action_space(actions, name)
    width = 0 if isinstance(space, Discrete) else space.size
    target = given_space(options, {}, width) or bounded(space, name)
    columns: defaultdict[str, list[np.ndarray]] = defaultdict(list)
    with contextlib.closing(minari_episodes(data, name)) as episodes:
        for where, episode in episodes:
            rows = len(episode["rewards"])
            seen = flatten(observations, episode["observations"], rows + 1, f"{where}, observations")
            if isinstance(space, Discrete):
                taken = np.asarray(episode["actions"]) - int(actions.start)
            else:
                taken = flatten(actions, episode["actions"], rows, f"{where}, actions")
            rewards, ended, cut = (np.array(episode[key]) for key in ("rewards", "terminations", "truncations"))
            steps = {"actions": taken, "rewards": rewards, "terminations": ended, "truncations": cut}
            found = minari_log_probs(episode.get("infos"), rows)
            if found is not None:
                steps["log_probs"] = found
                columns["log_probs"].append(found)
            check_columns({**steps, "observations": seen}, where, rows, more={"observations": 1})
            if isinstance(target, Box) and not options.flag("clip_actions"):
                check_actions(torch.from_numpy(taken), target, where)
            cut[-1] |= not ended[-1]
            for column, values in zip(COLUMNS, (seen[:-1], taken, rewards, seen[1:], ended, cut)):
                columns[column].append(values)
    if not columns:
        raise TelosError(f"{name} has no episodes", expected="at least one")
    if len(columns["log_probs"]) < len(columns["rewards"]):
        del columns["log_probs"]
    return finished({column: np.concatenate(parts) for column, parts in columns.items()}, target, what, options)


def minari_log_probs(infos: Mapping[str, Any] | None, rows: int) -> np.ndarray | None:
    """An episode's log-probs, if its infos hold them: one a step, or with one more in front for the reset."""
    for name in ("log_probs", "action_log_probs"):
        if infos is not None and name in infos:
            found = np.asarray(infos[name])[-rows:]
            return found if usable(found, rows) else None
    return None


def usable(array: np.ndarray | None, rows: int) -> bool:
    """Whether a tool's own entry is one finite number a row; if not, the data are good without it."""
    return (
        array is not None
        and array.dtype.kind == "f"
        and array.size == len(array) == rows
        and bool(np.isfinite(array).all())
    )


def minari_episodes(data: Any, name: str) -> Generator[tuple[str, dict[str, Any]], None, None]:
    """What to call each episode, and its arrays; the file is closed with the generator."""
    number = 0
    try:
        episodes = data.storage.get_episodes(data.episode_indices)
        with contextlib.closing(episodes) if hasattr(episodes, "close") else contextlib.nullcontext():
            for episode in episodes:
                yield f"{name}, episode {number}", episode
                number += 1
    except Exception as error:
        raise TelosError(
            f"{name}, episode {number} cannot be read", expected="a whole Minari data set",
            got=f"{type(error).__name__}: {error}", fix="write or download the data set again",
        ) from error  # fmt: skip


def is_minari(folder: Path) -> Path | None:
    """The folder with the data if `folder` is a Minari data set (or its data folder)."""
    for candidate in (folder / "data", folder):
        metadata = candidate / "metadata.json"
        if metadata.is_file():
            try:
                if "data_format" in json.loads(metadata.read_text()):
                    return candidate
            except (ValueError, AttributeError) as error:
                raise TelosError(f"{metadata} is not JSON", got=str(error), fix="write the data set again") from error
    if (folder / MINARI_FILE).is_file() or (folder / "data" / MINARI_FILE).is_file():
        raise TelosError(f"{folder}: metadata.json is missing", expected=f"metadata.json beside {MINARI_FILE}")
    return None


def load_gym(env_id: str, options: Options) -> Transitions:
    """Records from the environment `env_id`: steps, seed, policy ("random" or a saved product), explore, scheme.

    A scheme (see `telos.data.schemes`) says how often the policy's actions are replaced by random ones.
    """
    options.only("steps", "seed", "policy", "explore", "scheme")
    name = options.values.get("policy", "random")
    policy = None
    if name != "random":
        from telos.core.products import Policy, load_product

        folder = Path(name).expanduser().absolute()
        policy = load_product(folder)
        if not isinstance(policy, Policy):
            raise TelosError(f"{folder} does not act", expected="a saved policy", got=type(policy).__name__)
        name = str(folder)
    steps, seed = options.integer("steps", 10_000, least=1), options.integer("seed", 0)
    settled = Options(options.what, {**options.values, "steps": str(steps), "seed": str(seed), "policy": name})
    origin = settled.origin(f"gym:{env_id}")
    scheme = options.values.get("scheme")
    if scheme is not None:
        return generate(env_id, cast(Scheme, scheme), policy, steps=steps, seed=seed, origin=origin)
    return record(env_id, policy, steps=steps, seed=seed, explore=options.flag("explore"), origin=origin)


def given_space(options: Options, stored: Mapping[str, np.ndarray], width: int) -> Box | Discrete | None:
    """The action space that the options state, or the file (`stored`), or None where neither does."""
    if "n_actions" in options.values:
        return Discrete(options.integer("n_actions", 1, least=1))
    low = options.numbers("action_low")
    high = options.numbers("action_high")
    if low is None and high is None:
        if "n_actions" in stored:
            return Discrete(int(stored["n_actions"][0]))
        low, high = (tuple(stored[n].tolist()) if n in stored else None for n in ("action_low", "action_high"))
    if low is None and high is None:
        return None
    bounds: list[tuple[float, ...]] = []
    for name, values in (("action_low", low), ("action_high", high)):
        if values is None or len(values) not in (1, width):
            raise TelosError(
                f"{options.what}: {name} does not fit the actions", expected=f"1 or {width} numbers",
                got="none" if values is None else str(len(values)), fix="give both action_low and action_high",
            )  # fmt: skip
        bounds.append(values * width if len(values) == 1 else values)
    if not all(a < b for a, b in zip(bounds[0], bounds[1])):
        raise TelosError(
            f"{options.what}: the action bounds are not a range", expected="action_low < action_high",
            got=f"{bounds[0]} and {bounds[1]}",
        )  # fmt: skip
    return Box(bounds[0], bounds[1])


def width_of(actions: np.ndarray) -> int:
    """A, the numbers in one action."""
    return int(np.prod(actions.shape[1:]))


def need_column(present: Any, name: str, path: Path, names: list[str]) -> None:
    """Raises TelosError if `name` is not in `present`."""
    if name not in present:
        fix = f"add the column '{name}'"
        if name == "timeouts":
            fix += " (all false if no episode was cut): without it episodes would run into one another"
        raise TelosError(
            f"{path}: column '{name}' is missing", expected=f"an array '{name}'", got=", ".join(names) or "nothing",
            fix=fix,
        )  # fmt: skip


def check_columns(
    arrays: Mapping[str, np.ndarray], where: str | Path, count: int | None = None, more: Mapping[str, int] | None = None
) -> None:
    """Raises TelosError for the first column that is not of numbers, of the wrong length, or not finite.

    Args:
        count: the rows that columns should have; None for those of the first column.
        more: what some columns have beyond `count`.
    """
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub" or array.ndim == 0:
            raise TelosError(
                f"{where}: column '{name}' has type {array.dtype} and shape {array.shape}",
                expected="an array of numbers, one row a step",
            )  # fmt: skip
        count = len(array) if count is None else count
        rows = count + (more or {}).get(name, 0)
        if len(array) != rows:
            raise TelosError(
                f"{where}: column '{name}' has {len(array)} rows", expected=f"{rows}, as the other columns",
                fix="cut the columns to the same steps",
            )  # fmt: skip
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            raise TelosError(
                f"{where}: column '{name}', row {row} is not finite", expected="finite numbers", got=str(array[row]),
                fix="remove or mend that row",
            )  # fmt: skip
    if count == 0:
        raise TelosError(f"{where}: no steps", expected="at least one")


def finished(columns: Mapping[str, Any], space: Box | Discrete, base: str | Path, options: Options) -> Transitions:
    """The validated record with its origin."""
    columns = dict(columns)
    if options.flag("clip_actions") and isinstance(space, Box):
        actions = np.asarray(columns["actions"], dtype=np.float32).reshape(len(columns["actions"]), -1)
        columns["actions"] = np.clip(actions, *np.array([space.low, space.high], dtype=np.float32))
    origin = options.origin(base if isinstance(base, Path) else f"minari:{base}")
    return Transitions.validated(action_space=space, origin=origin, **columns)
