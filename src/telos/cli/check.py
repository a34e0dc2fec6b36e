"""telos check: runs a paper's claim."""

from __future__ import annotations

from collections.abc import Sequence

from telos import catalogue
from telos.cli.common import Parser, positive
from telos.core.registry import entries, planned
from telos.judge.results import SCALES


def run(argv: Sequence[str]) -> None:
    parser = Parser("check", "Runs the claim of a paper: arms on paired seeds, a table, intervals and the verdict.")
    parser.add_argument(
        "slug", metavar="SLUG", help="a paper, as dpo; or a family, as preferences, whose methods were compared"
    )
    parser.add_argument("--scale", choices=SCALES, default="laptop", help="laptop: minutes on two cores (default)")
    parser.add_argument("--quick", action="store_true", help="every part on a tiny budget; nothing is written")
    parser.add_argument("--jobs", type=positive, metavar="N", help="processes (default: one a core)")
    parser.add_argument("--out", metavar="DIR", help="where the result goes (default: runs/check/SLUG.SCALE)")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="S", help="other seeds, to develop with: 1000 and up")
    parser.add_argument("--verify", action="store_true", help="does the recorded result still hold? notes it")
    parser.add_argument("--record", action="store_true", help="write to results/ of the source tree (clean git)")
    options = parser.read(argv)
    known = {*entries(), *planned(), *catalogue.comparisons()}
    if "." not in options.slug and options.slug not in known:
        raise catalogue.unknown(options.slug, sorted(known))
    from telos.judge.check import check, verify

    if options.verify:
        print(f"{options.slug} ({options.scale}): {verify(options.slug, options.scale, jobs=options.jobs)}")
        return
    check(
        options.slug,
        scale=options.scale,
        quick=options.quick,
        out=options.out,
        jobs=options.jobs,
        record=options.record,
        seeds=tuple(options.seeds) if options.seeds else None,
    )
