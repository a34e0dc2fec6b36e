"""The server against people who mean it ill, over real sockets."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import pytest
from serving import Served, start

from telos.core.files import write_json
from telos.judge.results import read_results, results_folder
from telos.site.app import HEADERS, LONGEST_ADDRESS, LONGEST_BODY, LONGEST_HEADERS, STREAMS, Shelf, host_name
from telos.site.content import Library
from telos.site.jobs import Job
from telos.site.render import Live, Site

SLUG = "prdc"
LONG = "beso.laptop.full"
"""A check that does not end within a test."""
TIMES = {"submitted": "2026-01-01T00:00:00.000+00:00", "started": "2026-01-01T00:00:01.000+00:00"}
EVENTS = [{"event": "start", "runs": 1}, {"event": "run", "n": 1}, {"event": "run", "n": 2}, {"event": "verdict"}]
HOSTILE = "<script>alert(1)</script> {{ 7*7 }} \"'&"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def place(served: Served) -> tuple[str, int]:
    parts = urlsplit(served.address)
    assert parts.hostname and parts.port
    return parts.hostname, parts.port


def ask(served: Served, path: str, method: str = "GET", body: Any = None, **headers: str) -> Answer:
    """One request; underscores in names of headers stand for hyphens."""
    connection = http.client.HTTPConnection(*place(served), timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, urlencode(body) if isinstance(body, dict) else body, named)
    answer = connection.getresponse()
    found = Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    connection.close()
    return found


def raw(served: Served, text: bytes, wait: float = 5.0) -> bytes:
    """What the server says to these very bytes until it closes the connection, or until `wait` is over."""
    with socket.create_connection(place(served), timeout=wait) as connection:
        found = b""
        try:
            connection.sendall(text)
            while piece := connection.recv(65536):
                found += piece
        except OSError:  # silent, or closed while the rest was sent
            pass
        return found


def status(answer: bytes) -> int:
    found = re.match(rb"HTTP/1\.1 (\d+) ", answer)
    assert found, answer[:200]
    return int(found[1])


def token(served: Served) -> str:
    found = re.search(rb'name="token" value="([^"]+)"', ask(served, f"/papers/{SLUG}").body)
    assert found
    return found[1].decode()


def jobs(served: Served) -> list[dict[str, Any]]:
    return json.loads(ask(served, "/runs", accept="application/json").body)["runs"]


def write_job(runs: Path, name: str, state: str, message: str = "", ended: str | None = TIMES["submitted"]) -> Path:
    slug, scale, mode = name.split(".")
    times = TIMES | {"ended": ended}
    job = {"id": name, "slug": slug, "scale": scale, "mode": mode, "state": state, "message": message, **times}
    write_json(runs / name / "job.json", Job(**job).to_json())  # type: ignore[arg-type]
    return runs / name


def write_done(runs: Path) -> None:
    """A check that has ended, with its events."""
    folder = write_job(runs, f"{SLUG}.laptop.full", "done")
    write_json(folder / "result.json", read_results()[SLUG, "laptop"])
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("served")
    write_done(folder / "runs")
    write_job(folder / "runs", "dpo.laptop.quick", "failed", HOSTILE)
    server = start(folder)
    yield server
    assert server.process.poll() is None, "the server did not survive"
    assert server.stop() == 0
    assert "Traceback" not in (server.process.stderr.read() if server.process.stderr else "")


def test_every_address_answers_with_the_policy(served: Served):
    site = Site(Library(), Live("", True, lambda slug: ()))
    connection = http.client.HTTPConnection(*place(served), timeout=20)
    for path in ["runs", f"runs/{SLUG}.laptop.full", f"runs/{SLUG}.laptop.full/view", *site.pages, *site.files]:
        connection.request("GET", f"/{path}")
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200 and body, path
        assert {name: answer.getheader(name) for name in HEADERS} == HEADERS, path
        assert answer.getheader("server") is None and answer.getheader("content-type"), path
        if path in site.files and path != "atom.xml":
            assert body == site.files[path](), path
    policy = HEADERS["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    for method, path, code in (("GET", "/none", 404), ("PUT", "/", 405), ("POST", "/", 405), ("GET", "/papers", 404)):
        answer = ask(served, path, method)
        assert answer.status == code and answer.headers.items() >= HEADERS.items()


def test_pages_that_have_moved_or_are_missing(served: Served):
    assert ask(served, f"/papers/{SLUG}/").headers["location"] == f"/papers/{SLUG}"
    assert ask(served, "//").headers["location"] == "/"
    for path in (f"//papers/{SLUG}", "//example.org/", f"/papers/{SLUG}.html", "/index.html", "/static/", "/runs/x"):
        answer = ask(served, path)
        assert answer.status in (308, 404), path
        assert "example.org" not in answer.headers.get("location", ""), path
    # Links of an error's page work at any depth.
    page = ask(served, "/a%23/b/c").body.decode()
    assert 'href="../../static/site.css"' in page and "a#" not in page


TRAVERSALS = [
    "/../../../../etc/passwd", "/static/../../../../../etc/passwd", "/static/../app.py", "/static/..%2fapp.py",
    "/%2e%2e/%2e%2e/etc/passwd", "/static/%2e%2e/app.py", "/static/%2e%2e%2fapp.py", "/static/..%5capp.py",
    "/static/..\\app.py", "//etc/passwd", "/%2fetc%2fpasswd", "/file:///etc/passwd", "/static/%252e%252e%252fapp.py",
    "/static/site.css%00", "/static/site.css%00.html", "/static/....//app.py", "/results/../pyproject.toml",
    "/results/%2e%2e/pyproject.toml", "/source/..%2f..%2fapp", "/runs/..%2f..%2fetc/view", "/runs/%2e%2e/events",
    "/runs/../../etc/passwd/view", "/static/%c0%ae%c0%ae/app.py", "/static/%ff%fe", "/papers/%0d%0aSet-Cookie:%20a=b",
]  # fmt: skip


def test_no_path_leads_out(served: Served):
    host, port = place(served)
    for path in TRAVERSALS:
        answer = raw(served, f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        assert 400 <= status(answer) < 500, path
        assert not re.search(rb"root:|starlette|\[project\]|(?i:set-cookie)|Traceback", answer), path
        assert b"<script>alert" not in answer
    for name in ("", "/etc/passwd", "..", "x" * 300):
        answer = raw(served, f"GET {name} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert 400 <= status(answer) < 500, name


def test_too_much_is_refused(served: Served):
    host, _ = place(served)
    assert ask(served, "/?q=" + "x" * (LONGEST_ADDRESS - 3)).status == 200
    assert ask(served, "/?q=" + "x" * (LONGEST_ADDRESS - 2)).status == 414
    assert ask(served, "/" + "x" * LONGEST_ADDRESS).status == 414
    assert ask(served, "/" + "%41" * LONGEST_ADDRESS).status == 414
    assert ask(served, "/", x="y" * LONGEST_HEADERS).status == 431
    many = "".join(f"x-{i}: y\r\n" for i in range(LONGEST_HEADERS // 5))
    assert status(raw(served, f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{many}\r\n".encode())) == 431
    huge = b"x: " + b"y" * 1_000_000
    assert 400 <= status(raw(served, b"GET / HTTP/1.1\r\nHost: localhost\r\n" + huge + b"\r\n\r\n")) < 500
    assert 400 <= status(raw(served, b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")) < 500
    assert ask(served, "/").status == 200


@pytest.mark.parametrize(
    "text",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n", b"GET\r\n\r\n", b"\r\n\r\n\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n", b"G\x00T / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1e3\r\n\r\n",
        b"POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /runs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nx: a\nInjected: b\r\rc\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(served: Served, text: bytes):
    answer = raw(served, text, wait=1.0)
    assert 400 <= status(answer) < 500 and b"Traceback" not in answer
    assert ask(served, "/about").status == 200


def test_bodies_have_an_end(served: Served):
    form = {"token": token(served), "slug": SLUG, "scale": "laptop", "mode": "quick"}
    over = urlencode(form | {"pad": "x" * LONGEST_BODY})
    assert ask(served, "/runs", "POST", over).status == 413
    # Without a length: the limit holds for what comes, not for what is announced.
    pieces = [over.encode()[i : i + 500] for i in range(0, len(over), 500)]
    assert ask(served, "/runs", "POST", iter(pieces)).status == 413
    assert ask(served, "/", "POST", "x" * (LONGEST_BODY + 1)).status == 413
    # A form that never comes whole.
    head = b"POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\ntoken=x"
    assert raw(served, head, wait=0.3) == b""
    for body in ("=&=&", "a=1&" * 9 + "b=2", "token", b"\xff\xfe", "a=%ff&token=%00"):
        assert ask(served, "/runs", "POST", body).status in (400, 403), body
    assert len(jobs(served)) == 2


def test_the_server_answers_to_its_own_name_only(served: Served):
    host, port = place(served)
    for name in (f"{host}:{port}", "localhost", "LOCALHOST:1", "[::1]:80"):
        assert ask(served, "/about", host=name).status == 200, name
    wrong = [
        "example.org", f"example.org:{port}", "localhost.example.org", "", "localhost@example.org", "[::1", "0.0.0.0",
        "example.org@localhost", "localhost/x", "localhost?x", "localhost#x", "localhost:80x", "local host",
    ]  # fmt: skip
    for name in wrong:
        assert ask(served, "/about", host=name).status == 400, name
        assert ask(served, "/runs", "POST", {"token": token(served)}, host=name).status == 400, name
    assert host_name("[::1]:80") == "::1" and host_name("A.b:1") == "a.b" and host_name("a/b") == ""


def test_an_action_needs_the_token_and_the_origin(served: Served):
    host, port = place(served)
    good = {"token": token(served), "slug": SLUG, "scale": "laptop", "mode": "quick"}
    own = f"http://{host}:{port}"
    assert all(len(good["token"]) > 20 and good["token"] != value for value in ("", "x"))
    before = jobs(served)
    for change, headers in (
        ({"token": ""}, {}), ({"token": "x"}, {}), ({"token": good["token"][:-1]}, {}), ({"token": "é"}, {}),
        ({}, {"Origin": "http://example.org"}), ({}, {"Origin": "null"}), ({}, {"Origin": f"http://{host}:{port + 1}"}),
        ({}, {"Origin": f"https://{host}:{port}"}), ({}, {"Origin": ""}), ({}, {"Sec_Fetch_Site": "cross-site"}),
        ({}, {"Sec_Fetch_Site": "same-site"}), ({}, {"Sec_Fetch_Site": "none"}),
        ({}, {"Origin": own, "Sec_Fetch_Site": "cross-site"}),
    ):  # fmt: skip
        for path in ("/runs", f"/runs/{SLUG}.laptop.full/cancel"):
            answer = ask(served, path, "POST", good | change, accept="application/json", **headers)
            assert answer.status == 403 and json.loads(answer.body)["error"], (change, headers)
    for change in ({"slug": "none"}, {"slug": "../x"}, {"slug": "td3"}, {"slug": ""}, {"scale": "huge"}, {"scale": ""},
                   {"mode": "slow"}, {"mode": "../../x"}, {"slug": f"{SLUG}\0"}):  # fmt: skip
        answer = ask(served, "/runs", "POST", good | change, origin=own)
        assert answer.status == 400 and b"That cannot be done" in answer.body, change
    for name in ("none", "..", "%2e%2e", SLUG):
        assert ask(served, f"/runs/{name}/cancel", "POST", good).status in (400, 404)
    assert ask(served, f"/runs?{urlencode(good)}").status == 200, "a GET starts nothing"
    assert jobs(served) == before


def test_a_hundred_requests_start_two_checks_at_most(served: Served):
    host, port = place(served)
    form = {"token": token(served), "scale": "laptop", "mode": "full"}
    slugs = sorted({slug for slug, scale in read_results() if scale == "laptop"} - {SLUG})
    assert len(slugs) > 2

    def submit(index: int) -> int:
        body = form | {"slug": slugs[index % len(slugs)]}
        origin = {"origin": f"http://{host}:{port}", "sec_fetch_site": "same-origin"}
        headers = origin | ({"accept": "application/json"} if index % 2 else {})
        answer = ask(served, "/runs", "POST", body, **headers)
        if answer.status == 202:
            assert json.loads(answer.body)["slug"] == body["slug"]
        if answer.status == 303:
            assert answer.headers["location"] == f"/papers/{body['slug']}#run"
        return answer.status

    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(submit, range(100)))
    active = [job["id"] for job in jobs(served) if job["state"] in ("waiting", "running")]
    assert len(active) == 2 and 429 in found and set(found) & {202, 303} and set(found) <= {202, 303, 429}
    assert len(list((served.folder / "runs").iterdir())) == 5  # two old ones, two new ones, the lock
    page = ask(served, "/runs").body
    assert page.count(b">Cancel</button>") == 2
    assert ask(served, f"/runs/{active[0]}/cancel", "POST", form).status == 303
    # The token may also come in a header.
    assert ask(served, f"/runs/{active[1]}/cancel", "POST", x_telos_token=form["token"]).status == 303
    assert not [job for job in jobs(served) if job["state"] in ("waiting", "running")]


def test_a_runs_view_and_the_list_are_escaped(served: Served):
    for path in ("/runs", "/runs/dpo.laptop.quick/view"):
        page = ask(served, path).body.decode()
        assert "&lt;script&gt;alert(1)" in page and "<script>alert" not in page and "{{ 7*7 }}" in page
    assert json.loads(ask(served, "/runs/dpo.laptop.quick").body)["message"] == HOSTILE
    listed = json.loads(ask(served, f"/runs?slug={SLUG}", accept="application/json").body)["runs"]
    assert [job["id"] for job in listed] == [f"{SLUG}.laptop.full"] and listed[0]["state"] == "done"
    view = ask(served, f"/runs/{SLUG}.laptop.full/view").body.decode()
    assert "The recorded result is as it was" in view and view.count("<svg") >= 2


def events(text: str) -> list[tuple[int, Any]]:
    return [(int(number), json.loads(data)) for number, data in re.findall(r"^id: (\d+)\ndata: (.*)\n$", text, re.M)]


def test_events_resume_where_a_listener_stopped(served: Served):
    path = f"/runs/{SLUG}.laptop.full/events"
    answer = ask(served, path)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    text = answer.body.decode()
    assert events(text) == list(enumerate(EVENTS, 1))
    end = json.loads(text.split("event: end\ndata: ")[1])
    assert text.count("event: end") == 1 and end["state"] == "done" and end["id"] == f"{SLUG}.laptop.full"
    for last in (1, 3, 4, 99):
        resumed = ask(served, path, last_event_id=str(last)).body.decode()
        assert events(resumed) == list(enumerate(EVENTS, 1))[last:] and "event: end" in resumed
    for wrong in ("-1", "x", "1.5", "", "9" * 10, "²"):
        assert ask(served, path, last_event_id=wrong.encode("latin-1").decode("latin-1")).status == 400, wrong
    assert ask(served, "/runs/none/events").status == 404


def test_tags_head_and_compression(served: Served):
    for path in ("/", f"/papers/{SLUG}", "/static/site.css", "/atom.xml"):
        first = ask(served, path)
        tag = first.headers["etag"]
        again = ask(served, path, if_none_match=f'"other", W/{tag}')
        assert (again.status, again.body) == (304, b"") and again.headers["etag"] == tag, path
        assert again.headers.items() >= HEADERS.items()
        assert ask(served, path, if_none_match='"other"').status == 200
        head = ask(served, path, "HEAD")
        assert (head.status, head.body, head.headers["etag"]) == (200, b"", tag)
        packed = ask(served, path, accept_encoding="gzip")
        assert packed.headers["content-encoding"] == "gzip" and gzip.decompress(packed.body) == first.body
        assert len(packed.body) < len(first.body) / 2
    assert ask(served, "/", "HEAD").headers["content-length"] == str(len(ask(served, "/").body))
    # What a first view fetches.
    names = ("", "static/site.css", "static/charts.css", "static/feed.js", "static/theme.js", "static/icon.svg")
    assert sum(len(ask(served, f"/{name}", accept_encoding="gzip").body) for name in names) < 150_000


def test_the_feed_has_the_address_that_was_asked(served: Served):
    host, port = place(served)
    for name in (f"{host}:{port}", f"localhost:{port}"):
        assert f'href="http://{name}/papers/' in ask(served, "/atom.xml", host=name).body.decode()


def test_fifty_readers_at_once(served: Served):
    paths = ["/", f"/papers/{SLUG}", "/compare/preferences", f"/source/{SLUG}", "/api/papers.json"] * 10
    alone = {path: ask(served, path).body for path in set(paths)}
    with ThreadPoolExecutor(50) as pool:
        assert all(
            a.status == 200 and a.body == alone[p] for p, a in zip(paths, pool.map(lambda p: ask(served, p), paths))
        )


def test_compared_methods(served: Served):
    slugs = Library().families["offline_rl"]
    page = ask(served, f"/compare/offline_rl?methods={','.join(slugs[-2:])}").body.decode()
    row = page.split("</tr>")[0]
    assert re.findall(r'data-method="(\w+)"(?! hidden)', row) == slugs[-2:]
    for wrong in ("none", ",".join([*slugs, "none"]), "<script>", ",".join(slugs * 2 + [f"{s}x" for s in slugs])):
        answer = ask(served, f"/compare/offline_rl?{urlencode({'methods': wrong})}")
        assert answer.status == 400 and b"<script>," not in answer.body and b"<script>&" not in answer.body
    assert ask(served, "/compare/offline_rl?methods=").status == 200


def test_listeners_are_counted_and_hear_at_once_and_ctrl_c_ends_it_all(tmp_path: Path):
    write_job(tmp_path / "runs", LONG, "running", ended=None)
    server = start(tmp_path)
    listeners = []
    try:
        for _ in range(STREAMS):
            connection = http.client.HTTPConnection(*place(server), timeout=10)
            connection.request("GET", f"/runs/{LONG}/events", headers={"Accept-Encoding": "gzip"})
            listeners.append((connection, connection.getresponse()))
        assert [each.status for _, each in listeners] == [200] * STREAMS
        # The check goes on, and nothing waits for a buffer to fill.
        for _, each in listeners:
            assert each.getheader("content-encoding") is None
            assert [each.readline(), each.readline()] == [b"id: 1\n", b'data: {"event": "resumed"}\n']
        assert ask(server, f"/runs/{LONG}/events").status == 503
        for each in (connection, listeners.pop()[1]):
            each.close()
        until = time.monotonic() + 10
        while (again := raw_status(server, f"/runs/{LONG}/events")) == 503 and time.monotonic() < until:
            time.sleep(0.1)
        assert again == 200
        begun = time.monotonic()
    finally:
        code = server.stop()
    assert code == 0 and time.monotonic() - begun < 8
    assert json.loads((tmp_path / "runs" / LONG / "job.json").read_text())["state"] == "running"
    assert server.process.stderr is not None and "Traceback" not in server.process.stderr.read()


def raw_status(served: Served, path: str) -> int:
    """The status of an answer whose body is not waited for."""
    connection = http.client.HTTPConnection(*place(served), timeout=10)
    connection.request("GET", path)
    return connection.getresponse().status


def test_a_server_for_others_warns_and_starts_nothing(tmp_path: Path):
    command = [sys.executable, "-m", "telos", "serve", "--port", "0", "--host", "0.0.0.0", "--runs", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stderr is not None
    assert "warning: 0.0.0.0 is not local: anyone who reaches it can read" in process.stderr.readline()
    address = re.search(r"http://\S+/", process.stderr.readline())
    assert address
    server = Served(address[0].replace("0.0.0.0", "127.0.0.1"), process, tmp_path)
    try:
        for path in (f"/papers/{SLUG}", "/runs"):
            page = ask(server, path, host="any.example")
            assert page.status == 200 and b"cannot be started from the page" in page.body
            assert b"token" not in page.body and b"<button name" not in page.body
        answer = ask(server, "/runs", "POST", {"token": "", "slug": SLUG, "scale": "laptop", "mode": "quick"})
        assert answer.status == 403 and jobs(server) == []
    finally:
        assert server.stop() == 0


def test_public_runs_are_asked_for(tmp_path: Path):
    server = start(tmp_path, "--host", "0.0.0.0", "--public-runs", "--name", "Papers.example")
    try:
        assert ask(server, f"/papers/{SLUG}", host="papers.example:80").body.count(b'name="token"') >= 1
        assert ask(server, f"/papers/{SLUG}", host="other.example").status == 400
        origin = {"host": "papers.example", "origin": "http://papers.example"}
        form = {"token": token(server), "slug": "none", "scale": "laptop", "mode": "quick"}
        assert ask(server, "/runs", "POST", form, **origin).status == 400  # past the checks, and no such claim
    finally:
        assert server.stop() == 0


def test_a_server_that_cannot_start_says_why(served: Served, tmp_path: Path):
    port = str(place(served)[1])
    wrong = {
        r"cannot listen on 127.0.0.1:\d+\n(.|\n)*fix: .*--port 0": ["--port", port, "--runs", "other"],
        r"another server runs its jobs in .*\n  fix: .*--runs": ["--port", "0", "--runs", str(served.folder / "runs")],
        r"cannot listen on no such host:0": ["--port", "0", "--host", "no such host"],
        r"--host is empty": ["--port", "0", "--host", ""],
        r"cannot listen on é\.\.x": ["--port", "0", "--host", "é..x"],
        r"65536 is no port": ["--port", "65536"],
        r"cannot write /dev/null/runs": ["--port", "0", "--runs", "/dev/null/runs"],
    }
    # One process for all, as each takes seconds to begin.
    program = "import sys; from telos.cli import main\n"
    for options in wrong.values():
        program += f"print(main({['serve', *options]!r}), file=sys.stderr)\n"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    said = re.split(r"^(\d+)\n", ended.stderr, flags=re.M)
    assert said[1::2] == ["2"] * len(wrong), ended.stderr
    for words, text in zip(wrong, said[::2]):
        assert re.search(words, text) and "Traceback" not in text and "http://" not in text, text


def test_a_new_result_changes_the_pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    folder = results_folder()
    assert folder is not None
    for name in (f"{SLUG}.laptop.json", "dpo.laptop.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for module in ("app", "render", "content"):
        monkeypatch.setattr(f"telos.site.{module}.results_folder", lambda: tmp_path)
    monkeypatch.setattr("telos.judge.results.results_folder", lambda root=None: tmp_path)
    shelf = Shelf(Live("token", True, lambda slug: ()))
    first = shelf.fresh()
    page = shelf.get(f"papers/{SLUG}", first.pages[f"papers/{SLUG}"])
    assert shelf.fresh() is first and shelf.get(f"papers/{SLUG}", lambda: "other") is page
    result = read_results(tmp_path)[SLUG, "laptop"]
    assert page[0].count(b'<span class="chip stale">') == 0
    write_json(tmp_path / f"{SLUG}.laptop.json", result | {"stale": True})
    again = shelf.fresh()
    changed = shelf.get(f"papers/{SLUG}", again.pages[f"papers/{SLUG}"])
    assert again is not first and changed[1] != page[1] and b'<span class="chip stale">' in changed[0]
    # A file that is broken by hand does not take down the pages that stood before.
    (tmp_path / "dpo.laptop.json").write_text("{")
    assert shelf.fresh() is again
    (tmp_path / "dpo.laptop.json").unlink()
    assert ("dpo", "laptop") not in shelf.fresh().library.results
