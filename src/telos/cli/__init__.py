"""The command line. Each verb is a module here with `run(argv)`; it is imported when it is used."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from telos.core.errors import TelosError

VERBS = {
    "papers": "the 68 papers with their verdicts",
    "show": "a paper: its claim, the measured result, how to use it",
    "check": "run a paper's claim: table, intervals, verdict, figure",
    "fit": "train a method on your own data",
    "resume": "go on with an interrupted run",
    "eval": "measure a product in an environment or on data",
    "advise": "measures of your data, and which methods suit it",
    "compare": "several methods on your own data: one table with intervals",
    "data": "measure a data set, or study which methods do well on which data",
    "serve": "the papers on a local web page, where checks can be run",
    "site": "the same pages as static files",
    "digest": "new papers and changed verdicts since a date",
    "new": "write the skeleton of a paper (in a source checkout)",
}
USAGE = "telos VERB [options]"

REFUSED, INTERRUPTED, BROKEN_PIPE = 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit code: 0; 2 for what the user can put right; 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = dispatch(arguments)
        sys.stdout.flush()
        return code
    except TelosError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # What is still buffered has no reader; without this the interpreter complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else REFUSED


def dispatch(argv: list[str]) -> int:
    """The verb's own `run`, or what stands before a verb."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if argv[0] in ("-V", "--version"):
        from telos import __version__

        print(f"telos {__version__}")
        return 0
    verb = argv[0]
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=2)
        raise TelosError(
            f"telos has no verb '{verb}'",
            expected=", ".join(VERBS),
            fix=f"did you mean {' or '.join(close)}?" if close else "telos --help",
        )
    importlib.import_module(f"telos.cli.{verb}").run(argv[1:])
    return 0


def help_text() -> str:
    """The verbs, a line each."""
    width = max(map(len, VERBS)) + 3
    lines = [f"  {verb:{width}}{summary}" for verb, summary in VERBS.items()]
    return "\n".join(
        [f"usage: {USAGE}", "", "Purposes into policies: 68 papers as methods, claims and verdicts.", "", *lines, "",
         "telos VERB --help shows a verb's options; telos --version the version."]
    )  # fmt: skip
