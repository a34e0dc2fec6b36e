"""telos fit: a method on the user's own data. The method's dataclass is its options."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from telos.cli.common import finite, number
from telos.cli.outline import outline
from telos.core.errors import TelosError
from telos.core.files import read_json
from telos.core.registry import Entry, entries, entry, method_class

HELP = """usage: telos fit METHOD [options]

Trains METHOD and saves its product. `telos fit METHOD --help` shows every option with its default and source.

{methods}
"""

Text = Annotated[str | None, tyro.conf.arg(metavar="TEXT")]
Number = Annotated[int | None, tyro.conf.arg(metavar="INT")]
Flag = tyro.conf.FlagCreatePairsOff


@dataclass(frozen=True)
class RunOptions:
    """What to learn from, for how long, and where the product goes."""

    data: Text = None
    """What to learn from: a file, a folder, minari:ID, gym:ENV, a hub name; options as a query (pairs?split=test)."""
    steps: Number = None
    """Optimisation steps; needed by every method that trains."""
    model: Text = None
    """The language model to start from: a transformers folder, a hub name, telos:tiny."""
    reference: Text = None
    """The model that a KL or a log-ratio refers to, where there is one; by default the model as it was. For measures of
    data, the data that they are compared with."""
    purpose: Text = None
    """What scores completions: built in (length, keywords:cat,dog, sentiment, answer, regex:...), a saved reward model,
    your file.py:function with TRL's signature, or a weighted sum ("0.7*sentiment + 0.3*keywords:cat,dog")."""
    critic: Text = None
    """A saved reward model from which a critic starts, where a method has one."""
    expert: Text = None
    """An expert's records beside --data, where a method imitates: anything that --data takes."""
    env: Text = None
    """The environment to learn in, where a method does."""
    experience: Text = None
    """A new file .npz for all steps that were taken in --env, where a method offers it: data to learn from again."""
    lora: Number = None
    """Rank of LoRA adapters; without it all weights are trained."""
    out: Text = None
    """A new folder for product, metrics and checkpoints; by default runs/METHOD-1, -2, ..."""
    seed: int = 0
    """Of every random stream: the same seed gives the same product on a CPU."""
    seeds: Number = None
    """Train this many seeds, from --seed on, in one process; each has a folder in --out."""
    numerics: Annotated[Literal["auto", "plain", "compiled", "medium"], tyro.conf.arg(metavar="NAME")] = "auto"
    """auto (this machine's fastest in float32), plain (torch's own), compiled (gradient steps are compiled in
    short runs, too, and sampling), medium (products from bfloat16)."""
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1, ..."""
    micro: int = 1
    """Parts in which each batch is taken, to save memory; the result is the same within rounding."""
    checkpoint_every: int = 500
    """Steps between checkpoints; `telos resume` goes on from the newest."""
    evaluate_env: Text = None
    """Measure the policy in this environment while training (metric `return`)."""
    evaluate_every: Number = None
    """Steps between these measurements; by default once, at the end."""
    evaluate_episodes: int = 10
    """Episodes of each measurement."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Options of the method from a JSON file, as --print-config writes them; flags override it."""
    print_config: Annotated[bool, Flag] = False
    """Print the method's options as JSON and stop."""


GIVEN = ("model", "reference", "purpose", "critic", "expert", "env", "experience", "lora")
"""What is passed on to the method as it is."""


def run(argv: Sequence[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP.format(methods=method_list()))
        return
    name, rest = argv[0], list(argv[1:])
    if name.startswith("-"):
        raise TelosError("telos fit: the method comes first", got=name, fix="telos fit METHOD --data ...")
    found = entry(name.partition(".")[0])
    outlined = outline(name) if {"-h", "--help"} & set(rest) and config_path(rest) is None else None
    if outlined is not None:
        parse(outlined, name, found, rest)  # ends here, unless what looks like -h is the value of an option
    method, options = parse(method_class(name), name, found, rest)
    if options.print_config:
        print(json.dumps(finite(method.options()), indent=1))
        return
    train(method, name, options)


def method_list() -> str:
    """The methods by family, each with its variants."""
    families: dict[str, list[str]] = {}
    for slug, found in entries().items():
        names = [slug, *(f"{slug}.{variant.lower()}" for variant in found.classes[1:])]
        families.setdefault(found.family, []).extend(names)
    return "\n".join(f"  {family:<18}{', '.join(names)}" for family, names in families.items())


def parse(cls: type[Any], name: str, found: Entry, argv: list[str]) -> tuple[Any, RunOptions]:
    """The method and the run's options from the command line; tyro exits with 2 for a wrong one."""
    command = dataclasses.make_dataclass(
        "Command",
        [
            ("method", Annotated[cls, tyro.conf.arg(name="")]),
            ("run", tyro.conf.OmitArgPrefixes[RunOptions]),
        ],
    )
    default = command(from_config(cls, argv), RunOptions())
    source = f"arXiv {found.header['arxiv']}" if "arxiv" in found.header else found.header["reference"]
    description = f"{found.header['title']}. {source}.\n\n{inspect.getdoc(cls)}"
    parsed: Any = tyro.cli(command, args=argv, prog=f"telos fit {name}", description=description, default=default)
    return parsed.method, parsed.run


def from_config(cls: type[Any], argv: Sequence[str]) -> Any:
    """The method with the options of --config, where it is given, else with its defaults."""
    file = config_path(argv)
    if file is None:
        return cls()
    options = read_json(file)
    if not isinstance(options, dict):
        raise TelosError(f"{file} holds no options", expected="a JSON object, as --print-config prints it")
    hints = get_type_hints(cls, include_extras=False)
    for option, value in options.items():
        if option in hints and not fits(value, hints[option]):
            wanted = str(getattr(hints[option], "__name__", hints[option])).replace("typing.", "")
            raise TelosError(f"{file}: option '{option}' is wrong", expected=wanted, got=json.dumps(value))
    return cls.from_options(options)


def config_path(argv: Sequence[str]) -> str | None:
    """The value of --config, which is needed before the other options are read."""
    for place, text in enumerate(argv):
        if text == "--config" and place + 1 < len(argv):
            return argv[place + 1]
        if text.startswith("--config="):
            return text.partition("=")[2]
    return None


def fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value has the type of a field."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in inside)
    if origin is Literal:
        return value in inside
    if origin in (tuple, list):
        return isinstance(value, list) and all(fits(item, inside[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    return isinstance(value, dict)


def train(method: Any, name: str, options: RunOptions) -> None:
    """Loads the data, fits, and says where everything is."""
    if method.trains and (options.steps is None or options.steps < 1):
        raise TelosError(f"{name} needs steps", expected="--steps, 1 or more", got=str(options.steps))
    from telos.scale.processes import launched

    together = launched()
    if together > 1 and options.out is None:
        raise TelosError(f"{together} processes need one folder", fix="name it with --out")
    data = load_data(method, name, options.data)
    out = Path(options.out) if options.out is not None else next_folder(name)
    evaluate, every = evaluator(options.evaluate_env, options.evaluate_episodes, options.seed), 0
    if evaluate is not None:
        every = options.evaluate_every or options.steps or 0
    given = {key: value for key in GIVEN if (value := getattr(options, key)) is not None}
    for key in ("model", "reference", "purpose", "critic", "expert"):
        # A run that is resumed elsewhere must find its folders and files again.
        if key in given and (Path(given[key]).is_dir() or (key == "expert" and Path(given[key]).is_file())):
            given[key] = str(Path(given[key]).absolute())
    if "experience" in given:
        given["experience"] = str(Path(given["experience"]).absolute())
    try:
        product = method.fit(
            data,
            steps=options.steps,
            seed=options.seed,
            device=options.device,
            out=out,
            evaluate=evaluate,
            evaluate_every=every,
            checkpoint_every=options.checkpoint_every,
            micro=options.micro,
            seeds=options.seeds,
            numerics=options.numerics,
            **given,
        )
    except KeyboardInterrupt:
        if (out / "run.json").is_file() or options.seeds is not None:
            print(f"\n`telos resume {out}` goes on", end="", file=sys.stderr)
        raise
    if options.seeds is None:
        finished(out, product)
        return
    for seed, one in enumerate(product, options.seed):
        finished(out / f"seed-{seed}", one)


def load_data(method: Any, name: str, what: str | None) -> Any:
    """The record that `what` holds, of the kind that the method learns from."""
    if what is None:
        if method.data is not None:
            raise TelosError(
                f"{name} learns from {method.data.__name__}: --data is missing", fix="--data FILE, folder or name"
            )
        return None
    from telos.data.formats import load

    return load(what, kind=method.data, accepts=method.accepts)


def next_folder(name: str) -> Path:
    """runs/<name>-<n> with the next free number."""
    taken = [re.fullmatch(rf"{re.escape(name)}-(\d+)", path.name) for path in Path("runs").glob(f"{name}-*")]
    return Path("runs") / f"{name}-{1 + max((int(match[1]) for match in taken if match), default=0)}"


def evaluator(env: str | None, episodes: int, seed: int) -> Callable[..., Mapping[str, float]] | None:
    """What `fit` calls to measure a policy in `env`; None without one."""
    if env is None:
        return None
    if episodes < 1:
        raise TelosError("--evaluate-episodes must be positive", got=str(episodes))
    from telos.data.environments import make
    from telos.judge.evaluate import evaluate

    make(env).close()

    def measure(step: int, product: Callable[[], Any]) -> Mapping[str, float]:
        return {"return": evaluate(product(), env, episodes=episodes, seed=seed).mean}

    return measure


def finished(out: Path, product: Any) -> None:
    """Where the product is, what was done to the data, and the last metrics; one process says it for all."""
    from telos.core import parallel

    if not parallel.leads():
        return
    print(f"product   {out / 'product'}  ({type(product).__name__})")
    file = out / "metrics.jsonl"
    for key, note in product.provenance.get("notes", {}).items():
        print(f"{key:<8}  {note}")
    lines = file.read_text().splitlines() if file.is_file() else []
    if lines:
        last = json.loads(lines[-1])
        print(f"metrics   {file}")
        numbers = [f"{key} {number(value)}" for key, value in last.items() if key not in ("stage", "step", "time")]
        print(f"step {last['step']}  " + "  ".join(numbers))
    sys.stdout.flush()
