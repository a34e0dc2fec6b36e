"""telos site build: the pages as static files."""

from __future__ import annotations

import re
from collections.abc import Sequence

from telos.cli.common import Parser
from telos.core.errors import TelosError
from telos.data.extras import extra


def run(argv: Sequence[str]) -> None:
    parser = Parser("site", "Writes the pages that `telos serve` shows as files, for any file server, or none.")
    parser.add_argument("action", choices=["build"])
    parser.add_argument("out", metavar="OUT", help="a new or empty folder, or an earlier build, which is replaced")
    parser.add_argument("--url", default="", help="where the site will stand, for the links in its Atom feed")
    options = parser.read(argv)
    if options.url and not re.match(r"https?://[^\s/]+", options.url):
        raise TelosError("--url is not an address", expected="https://...", got=options.url)
    with extra("site", "telos site"):
        from telos.site.build import build
    written = build(options.out, base=options.url)
    print(f"{len(written)} files in {options.out}")
