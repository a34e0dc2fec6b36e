"""telos serve: the pages on this machine."""

from __future__ import annotations

import argparse
import ipaddress
import sys
from collections.abc import Sequence

from telos.cli.common import Parser
from telos.core.errors import TelosError
from telos.data.extras import extra


def port(text: str) -> int:
    """A TCP port, for argparse; 0 takes a free one."""
    value = int(text)
    if not 0 <= value < 65536:
        raise argparse.ArgumentTypeError(f"{value} is no port: 0 to 65535")
    return value


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def run(argv: Sequence[str]) -> None:
    parser = Parser("serve", "Shows the papers, their claims and verdicts on a local web page, and runs checks there.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=port, default=8765, help="default 8765; 0 takes a free one")
    parser.add_argument("--runs", default="runs/site", metavar="DIR", help="where checks leave their files")
    parser.add_argument("--public-runs", action="store_true", help="let others start checks, where --host is not local")
    parser.add_argument("--name", action="append", default=[], metavar="HOST", help="a further name of this server")
    options = parser.read(argv)
    if not options.host:
        raise TelosError("--host is empty", fix="leave it out for this machine only; 0.0.0.0 for every address")
    local = is_loopback(options.host)
    if not local:
        what = "read these pages and start checks" if options.public_runs else "read these pages"
        print(f"warning: {options.host} is not local: anyone who reaches it can {what}", file=sys.stderr)
    with extra("site", "telos serve"):
        from telos.site.app import serve
    serve(
        options.host, options.port, folder=options.runs, runs_allowed=local or options.public_runs, names=options.name
    )
