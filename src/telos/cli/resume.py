"""telos resume: goes on with a run that was interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from telos.cli.common import Parser, positive


def run(argv: Sequence[str]) -> None:
    parser = Parser("resume", "Goes on from the newest checkpoint; on a CPU the product is the same bit for bit.")
    parser.add_argument("run", metavar="RUN", help="the folder that `telos fit` wrote")
    parser.add_argument("--purpose", metavar="FILE.PY:FUNCTION", help="your function, again, where the run used one")
    parser.add_argument("--evaluate-env", metavar="E", help="measure in this environment, as for `telos fit`")
    parser.add_argument("--evaluate-every", type=positive, metavar="N", help="steps between measurements")
    parser.add_argument("--evaluate-episodes", type=positive, default=10, metavar="N")
    options = parser.read(argv)
    out = Path(options.run)
    from telos.cli.fit import evaluator, finished
    from telos.core.errors import TelosError
    from telos.core.files import read_json
    from telos.core.fit import resume, seed_folders

    runs = [out] if (out / "run.json").is_file() else seed_folders(out)
    if not runs:
        raise TelosError(f"{out} is not a run", expected="a folder with run.json, as `telos fit --out` writes")
    done = all((run / "product").is_dir() for run in runs)
    header = read_json(runs[0] / "run.json")
    evaluate = evaluator(options.evaluate_env, options.evaluate_episodes, header["seed"])
    every = (options.evaluate_every or header["steps"]) if evaluate else 0
    product = resume(out, purpose=options.purpose, evaluate=evaluate, evaluate_every=every)
    if done:
        print(f"{out} was finished already")
    for run, one in zip(runs, [product] if runs == [out] else product, strict=True):
        finished(run, one)
