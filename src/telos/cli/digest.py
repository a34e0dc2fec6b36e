"""telos digest: new papers and changed verdicts since a date."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from telos.cli.common import Parser
from telos.core.errors import TelosError
from telos.core.files import write_atomic


def run(argv: Sequence[str]) -> None:
    parser = Parser("digest", "What changed since a date, as Markdown on standard output or as an e-mail file.")
    parser.add_argument("--since", required=True, metavar="DATE", help="2026-01-31, or with a time 2026-01-31T12:00")
    parser.add_argument("--eml", metavar="FILE", help="write an e-mail to FILE instead; nothing is sent")
    parser.add_argument("--sender", default="telos <telos@localhost>", help="the e-mail's From")
    parser.add_argument("--to", default="undisclosed-recipients:;", help="the e-mail's To")
    parser.add_argument("--url", default="", help="the address of the site, to link the papers")
    options = parser.read(argv)
    from telos.site import feeds
    from telos.site.content import Library

    try:
        date = feeds.moment(options.since)
    except ValueError as error:
        raise TelosError("--since is not a date", expected="2026-01-31", got=options.since) from error
    base = f"{options.url.rstrip('/')}/" if options.url else ""
    library = Library()
    text = feeds.markdown(library, feeds.since(library, date), date, base)
    if options.eml is None:
        print(text, end="")
        return
    for name in ("sender", "to"):
        if not getattr(options, name).isprintable():
            raise TelosError(f"--{name} holds a line break or another control character", expected="an e-mail address")
    print(write_atomic(Path(options.eml), feeds.email(text, datetime.now(UTC), options.sender, options.to)))
