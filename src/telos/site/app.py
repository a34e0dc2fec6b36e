"""`telos serve`: the pages over HTTP, and the checks that can be started from them.

Everything that is asked for by path is looked up in a table, so no path reaches the file system. Actions need the
token that the pages carry and, from a browser, the same origin. The Host header must name this server, so that no
other site's name can be pointed at it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import re
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from telos.core.errors import TelosError
from telos.judge.results import read_result, results_folder
from telos.site import feeds
from telos.site.content import Library
from telos.site.jobs import Busy, Job, Jobs, claim_scales
from telos.site.render import HTML, MEDIA, POLICY, Live, Site

LONGEST_ADDRESS, LONGEST_HEADERS, LONGEST_BODY = 2048, 16384, 4096
"""Characters of path and query; bytes of all headers; bytes of a form."""
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9_.-]+))(?::[0-9]{0,5})?", re.I | re.A)
"""A Host header: an address in brackets or a name, and a port."""
STREAMS = 32
"""Listeners to events at one time."""
POLL, HEARTBEAT = 0.25, 15.0
"""Seconds between looks at a run's events, and between signs of life on a silent stream."""
HEADERS = {
    "content-security-policy": f"{POLICY}; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Refuses hosts, addresses and bodies that nobody honest sends, and adds the headers of safety to every answer.

    Args:
        hosts: names that the Host header may have, without the port; None for any.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {name for name, _ in message["headers"]}
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(pair for pair in extra if pair[0] not in known)]
            await send(message)

        refused = self.refuse(scope)
        if refused is not None:
            await plain(*refused)(scope, receive, guarded)
            return
        await self.app(scope, receive, guarded)

    def refuse(self, scope: Scope) -> tuple[int, str] | None:
        """A status and why, for what is not answered at all."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        name = host_name(headers.get(b"host", ""))
        if not name or (self.hosts is not None and name not in self.hosts):
            return 400, "this server does not go by that name"
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > LONGEST_ADDRESS:
            return 414, "the address is too long"
        if sum(len(name) + len(value) for name, value in scope["headers"]) > LONGEST_HEADERS:
            return 431, "the headers are too long"
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "only GET, HEAD and POST are answered"
        length = headers.get(b"content-length", "0")
        if not length.isascii() or not length.isdigit():
            return 400, "content-length is no number"
        if int(length) > LONGEST_BODY:
            return 413, "the form is too long"
        return None


def plain(status: int, text: str) -> Response:
    return Response(f"{status}: {text}\n", status, media_type="text/plain")


def host_name(header: str) -> str:
    """The name in a Host header, without the port, in small letters; empty where it is none."""
    found = HOST.fullmatch(header)
    return (found[1] or found[2]).lower() if found else ""


def tagged(made: str | bytes) -> tuple[bytes, str]:
    """The bytes of a page or file and their entity tag."""
    content = made.encode() if isinstance(made, str) else made
    return content, f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'


class Shelf:
    """Pages as bytes with their tags, made once; made anew when a recorded result changes."""

    def __init__(self, live: Live, library: Library | None = None):
        self.live, self.fixed = live, library
        self.mark = self.seen()
        self.site = Site(library or Library(), live)
        self.kept: dict[str, tuple[bytes, str]] = {}

    def seen(self) -> list[tuple[str, int]]:
        """The names and times of the recorded results."""
        folder = results_folder() if self.fixed is None else None
        return [(file.name, file.stat().st_mtime_ns) for file in sorted(folder.glob("*.json"))] if folder else []

    def fresh(self) -> Site:
        """The site as the results on disk have it now; as it was, where one of them cannot be read."""
        mark = self.seen()
        if mark != self.mark:
            self.mark = mark
            with contextlib.suppress(TelosError):
                self.site, self.kept = Site(self.fixed or Library(), self.live), {}
        return self.site

    def get(self, key: str, make: Callable[[], str | bytes]) -> tuple[bytes, str]:
        """The bytes under `key` and their entity tag."""
        if key not in self.kept:
            self.kept[key] = tagged(make())
        return self.kept[key]


class Handlers:
    """What each address does."""

    def __init__(self, shelf: Shelf, jobs: Jobs, live: Live):
        self.shelf, self.jobs, self.live = shelf, jobs, live
        self.streams = 0
        self.stopping = False

    async def get(self, request: Request) -> Response:
        """A page or a file, by its path."""
        site, path = self.shelf.fresh(), request.path_params["path"]
        if path.endswith("/") and path.strip("/") in site.pages:
            return RedirectResponse(f"/{path.strip('/')}", 308)
        if path in site.pages:
            asked = ",".join(request.query_params.getlist("methods") + request.query_params.getlist("m"))
            if path.startswith("compare/") and asked:
                try:
                    return Response(site.compared(path.removeprefix("compare/"), asked), media_type=HTML)
                except TelosError as error:
                    return self.wrong(request, 400, error)
            return self.answer(request, HTML, *self.shelf.get(path, site.pages[path]))
        if path == "atom.xml":
            made = feeds.atom(site.library, str(request.base_url), site.link)
            return self.answer(request, MEDIA[".xml"], *tagged(made))
        if path in site.files:
            return self.answer(request, MEDIA[Path(path).suffix], *self.shelf.get(path, site.files[path]))
        return self.missing(request)

    def answer(self, request: Request, media: str, content: bytes, tag: str) -> Response:
        headers = {"etag": tag, "cache-control": "no-cache"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media, headers=headers)

    def missing(self, request: Request) -> Response:
        page = self.shelf.site.error(
            request.scope["path"][1:], 404, "Nothing here", "There is no page at this address."
        )
        return Response(page, 404, media_type=HTML)

    def wrong(self, request: Request, status: int, error: TelosError) -> Response:
        """An error as JSON where JSON was asked for, else as a page."""
        if wants_json(request):
            return JSONResponse({"error": str(error)}, status)
        page = self.shelf.site.error(request.scope["path"][1:], status, "That cannot be done", str(error))
        return Response(page, status, media_type=HTML)

    async def runs(self, request: Request) -> Response:
        """All runs, as a page or as JSON."""
        jobs = self.jobs.all()
        if wants_json(request):
            slug = request.query_params.get("slug")
            return JSONResponse({"runs": [job.to_json() for job in jobs if slug in (None, job.slug)]})
        return Response(self.shelf.site.page("runs", "runs.html", jobs=jobs, here="runs"), media_type=HTML)

    async def run(self, request: Request) -> Response:
        """One run's state."""
        job = self.find(request)
        return self.missing(request) if job is None else JSONResponse(job.to_json())

    async def view(self, request: Request) -> Response:
        """One run's result beside the recorded one: a fragment for the paper's page."""
        job = self.find(request)
        if job is None:
            return self.missing(request)
        result = recorded = None
        with contextlib.suppress(TelosError):
            result = self.jobs.result(job.id)
        with contextlib.suppress(TelosError):
            recorded = {part["text"]: part for part in read_result(job.slug, job.scale)["parts"]}
        page = self.shelf.site.page(
            f"papers/{job.slug}", "run_view.html", job=job, result=result, recorded=recorded, here="run"
        )
        return Response(page, media_type=HTML)

    async def submit(self, request: Request) -> Response:
        """Starts a check, or queues it."""
        try:
            form = await self.form(request)
            job = self.jobs.submit(*(form.get(name, "") for name in ("slug", "scale", "mode")))
        except Refused as error:
            return self.wrong(request, error.status, error)
        except Busy as error:
            return self.wrong(request, 429, error)
        except TelosError as error:
            return self.wrong(request, 400, error)
        if wants_json(request):
            return JSONResponse(job.to_json(), 202)
        return RedirectResponse(f"/papers/{job.slug}#run", 303)

    async def cancel(self, request: Request) -> Response:
        """Ends a run."""
        try:
            await self.form(request)
        except Refused as error:
            return self.wrong(request, error.status, error)
        job = self.find(request)
        if job is None:
            return self.missing(request)
        try:
            job = await asyncio.to_thread(self.jobs.cancel, job.id)
        except TelosError as error:
            return self.wrong(request, 503, error)
        return JSONResponse(job.to_json()) if wants_json(request) else RedirectResponse("/runs", 303)

    async def events(self, request: Request) -> Response:
        """A run's events as they come; a listener that returns says what it saw last and gets the rest."""
        job = self.find(request)
        if job is None:
            return self.missing(request)
        last = request.headers.get("last-event-id", "0")
        if not (last.isascii() and last.isdigit() and len(last) < 10):
            return plain(400, "last-event-id is no number")
        if self.streams >= STREAMS:
            return plain(503, "too many listeners")
        return StreamingResponse(
            self.stream(job.id, int(last)), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    async def stream(self, name: str, after: int) -> AsyncIterator[str]:
        self.streams += 1
        try:
            silent, begun = 0.0, None
            while not self.stopping:
                job = self.jobs.get(name)
                if begun not in (None, job.submitted):
                    after = 0
                begun = job.submitted
                fresh = self.jobs.events(name, after)
                for after, event in fresh:
                    yield f"id: {after}\ndata: {json.dumps(event)}\n\n"
                if not job.active and not self.jobs.events(name, after):
                    yield f"event: end\ndata: {json.dumps(job.to_json())}\n\n"
                    break
                silent = 0.0 if fresh else silent + POLL
                if silent >= HEARTBEAT:
                    silent = 0.0
                    yield ": still here\n\n"
                await asyncio.sleep(POLL)
        finally:
            self.streams -= 1

    def find(self, request: Request) -> Job | None:
        with contextlib.suppress(TelosError):
            return self.jobs.get(request.path_params["name"])
        return None

    async def form(self, request: Request) -> dict[str, str]:
        """The fields of an action's form, after all checks.

        Raises:
            Refused: not allowed here, from elsewhere, without the token, or malformed.
        """
        if not self.live.runs_allowed:
            raise Refused(403, "checks cannot be started here", "telos serve on your own machine")
        site = request.headers.get("sec-fetch-site", "same-origin")
        origin = request.headers.get("origin")
        here = f"{request.url.scheme}://{request.headers.get('host', '')}"
        if site != "same-origin" or (origin is not None and origin != here):
            raise Refused(403, "the request comes from another site", "use the page that this server shows")
        body = b""
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > LONGEST_BODY:
                    raise Refused(413, "the form is too long", f"at most {LONGEST_BODY} bytes")
        except ClientDisconnect as error:
            raise Refused(400, "the form did not come whole", "send it again") from error
        try:
            fields = parse_qs(body.decode("ascii"), max_num_fields=8, strict_parsing=bool(body))
        except (UnicodeDecodeError, ValueError) as error:
            raise Refused(400, "the form cannot be read", "name=value pairs") from error
        form = {name: values[-1] for name, values in fields.items()}
        token = form.get("token") or request.headers.get("x-telos-token", "")
        if not secrets.compare_digest(token.encode(), self.live.token.encode()):
            raise Refused(403, "the token is missing or from before a restart", "load the page again")
        return form


class Refused(TelosError):
    """An action that is not done."""

    def __init__(self, status: int, what: str, fix: str):
        super().__init__(what, fix=fix)
        self.status = status


def wants_json(request: Request) -> bool:
    return "application/json" in request.headers.get("accept", "")


def application(
    jobs: Jobs, *, hosts: frozenset[str] | None, runs_allowed: bool = True, library: Library | None = None
) -> Starlette:
    """The server's application; it starts `jobs` when it starts and stops them when it ends.

    Args:
        hosts: names that requests may use for this server; None for any.
        library: pages of this snapshot; by default of the recorded results as they are at each request.
    """
    live = Live(secrets.token_urlsafe(24), runs_allowed, claim_scales)
    shelf = Shelf(live, library)
    handlers = Handlers(shelf, jobs, live)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        jobs.start()
        # What a visitor sees first is made before anybody asks.
        shelf.get("", shelf.fresh().pages[""])
        # The results are many small objects that stay: without this each page waits for the collector to walk them.
        gc.collect()
        gc.freeze()
        try:
            yield {}
        finally:
            handlers.stopping = True
            await asyncio.to_thread(jobs.stop)

    app = Starlette(
        routes=[
            Route("/runs", handlers.runs),
            Route("/runs", handlers.submit, methods=["POST"]),
            Route("/runs/{name}", handlers.run),
            Route("/runs/{name}/view", handlers.view),
            Route("/runs/{name}/events", handlers.events),
            Route("/runs/{name}/cancel", handlers.cancel, methods=["POST"]),
            Route("/{path:path}", handlers.get),
        ],
        middleware=[Middleware(Guard, hosts=hosts), Middleware(GZipMiddleware, minimum_size=1024)],
        lifespan=lifespan,
    )
    app.state.handlers = handlers
    return app


class Server(uvicorn.Server):
    """uvicorn, which tells open event streams that it is about to stop."""

    handlers: Handlers

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.handlers.stopping = True
        super().handle_exit(sig, frame)


def serve(host: str, port: int, *, folder: str | Path, runs_allowed: bool, names: Sequence[str] = ()) -> None:
    """Serves until interrupted.

    Raises:
        TelosError: the address cannot be listened on, or another server has the folder.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except (OSError, TypeError, UnicodeError) as error:
        raise TelosError(
            f"cannot listen on {host}:{port}", got=getattr(error, "strerror", None) or str(error),
            fix="another --host or --port; --port 0 takes a free one",
        ) from error  # fmt: skip
    # What a connection inherits: without it an answer's body waits 40 ms for the receipt of its headers.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    everywhere = host in ("0.0.0.0", "::", "")
    known = {"localhost", "127.0.0.1", "::1", host.lower(), *(name.lower() for name in names)}
    hosts = None if everywhere and not names else frozenset(known)
    jobs = Jobs(Path(folder))
    app = application(jobs, hosts=hosts, runs_allowed=runs_allowed)
    config = uvicorn.Config(
        app, http="h11", ws="none", log_level="warning", access_log=False, server_header=False,
        limit_concurrency=200, timeout_graceful_shutdown=5,
    )  # fmt: skip
    server = Server(config)
    server.handlers = app.state.handlers
    shown = f"[{host}]" if ":" in host else host
    # Ctrl-C is how a server is meant to end.
    with jobs, contextlib.suppress(KeyboardInterrupt):
        print(f"telos: http://{shown}:{listening.getsockname()[1]}/ (Ctrl-C ends it)", file=sys.stderr, flush=True)
        server.run(sockets=[listening])
