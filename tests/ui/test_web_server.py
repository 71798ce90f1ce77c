"""The page's server: who may talk to it, and what it does with what they say. Raw HTTP throughout."""

import http.client
import json
import re
import socket

import pytest

from rlhfkit.errors import CannotCreate
from rlhfkit.ui.journal import Journal
from rlhfkit.ui.ranking_session import Item, Session
from rlhfkit.ui.web.server import MOST_BYTES, RankingServer

XSS = "<script>alert(1)</script>"


def plain(text):
    return (("", text),)


@pytest.fixture
def server(tmp_path):
    items = [Item(f"k{i}", plain(XSS), (plain(f"a{i}"), plain(f"b{i}"), plain(f"c{i}"))) for i in range(3)]
    journal = Journal(tmp_path / "j")
    server = RankingServer(Session(items, journal, "ann"))
    server.start()
    yield server
    server.stop()
    journal.close()


def request(server, method, path, body=None, cookie=True, **headers):
    """(status, headers, body). Keywords replace the headers that a good request has; None leaves one out."""
    own = f"127.0.0.1:{server.server_port}"
    sent = {"Host": own}
    if cookie:
        sent["Cookie"] = f"{server.cookie}={server.secret}"
    if method != "GET":
        sent |= {"Origin": f"http://{own}", "Content-Type": "application/json"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    if data is not None:
        sent.setdefault("Content-Length", str(len(data)))
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in sent.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(data)
    reply = connection.getresponse()
    answer = reply.status, dict(reply.getheaders()), reply.read()
    connection.close()
    return answer


def state(server, path="/api/item"):
    status, _, body = request(server, "GET", path)
    assert status == 200
    return json.loads(body)


def decision(server, **change):
    item = state(server)["item"]
    return {
        "item": item["key"],
        "version": item["version"],
        "decision": "0123456789",
        "tiers": [[1], [0, 2]],
        **change,
    }


def written(server):
    return [line for line in server.session.journal.path.read_text().splitlines() if line]


# -- getting in --------------------------------------------------------------------------------------------


def test_the_link_works_once_and_gives_a_strict_cookie(server):
    assert server.server_address[0] == "127.0.0.1"
    path = server.url.partition(str(server.server_port))[2]
    assert len(path) > len("/?token=") + 40
    status, headers, _ = request(server, "GET", path, cookie=False)
    assert (status, headers["Location"]) == (303, "/")
    cookie = headers["Set-Cookie"]
    assert cookie == f"{server.cookie}={server.secret}; Path=/; HttpOnly; SameSite=Strict"
    assert request(server, "GET", path, cookie=False)[0] == 403
    status, headers, _ = request(server, "GET", path)  # who has the cookie just goes on
    assert (status, "Set-Cookie" in headers) == (303, False)


@pytest.mark.parametrize(
    "path", ["/", "/page.js", "/page.css", "/icon.svg", "/api/item", "/nothing", "/?token=x", "/?token="]
)
def test_no_token_no_page(server, path):
    assert request(server, "GET", path, cookie=False)[0] == 403
    assert request(server, "GET", path, Cookie=f"{server.cookie}={server.secret[:-1]}")[0] == 403
    assert request(server, "GET", path, Cookie="=;;,\x01")[0] == 403


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:PORT",
        "127.0.0.1",
        "127.0.0.1.evil.example:PORT",
        "127.0.0.1:1",
        "[::1]:PORT",
        "0.0.0.0:PORT",
        "",
        None,
    ],
)
def test_a_foreign_host_is_refused(server, host):
    host = host and host.replace("PORT", str(server.server_port))
    for method, path in (("GET", "/"), ("GET", "/api/item"), ("POST", "/api/decision")):
        body = {} if method == "POST" else None
        assert request(server, method, path, body, Host=host)[0] == 403


def test_localhost_is_this_host(server):
    name = f"localhost:{server.server_port}"
    assert request(server, "GET", "/", Host=name)[0] == 200
    assert (
        request(server, "POST", "/api/decision", decision(server), Host=name, Origin=f"http://{name}")[0]
        == 200
    )


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "",
        "https://127.0.0.1:PORT",
        "http://127.0.0.1:1",
        "http://127.0.0.1:PORT.evil.example",
        None,
    ],
)
def test_a_foreign_origin_is_refused(server, origin):
    origin = origin and origin.replace("PORT", str(server.server_port))
    body = decision(server)
    assert request(server, "POST", "/api/decision", body, Origin=origin)[0] == 403
    assert request(server, "POST", "/api/finish", {}, Origin=origin)[0] == 403
    if origin is not None:
        assert request(server, "GET", "/api/item", Origin=origin)[0] == 403
    assert not written(server)
    assert not server.finished.is_set()


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_site_is_refused_even_without_origin(server, site):
    assert request(server, "GET", "/api/item", Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors")[0] == 403
    assert request(server, "GET", "/page.js", Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors")[0] == 403
    assert request(server, "GET", "/api/item", Sec_Fetch_Site="same-origin")[0] == 200
    assert request(server, "GET", "/", Sec_Fetch_Site="none", Sec_Fetch_Mode="navigate")[0] == 200


@pytest.mark.parametrize(
    "kind",
    [
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "text/plain",
        "text/plain; application/json",
        "",
        None,
    ],
)
def test_only_json_is_written(server, kind):
    body = decision(server)
    assert request(server, "POST", "/api/decision", body, Content_Type=kind)[0] == 403
    assert not written(server)


def test_nobody_may_ask_from_elsewhere(server):
    status, headers, _ = request(
        server, "OPTIONS", "/api/decision", Origin="http://evil.example", Access_Control_Request_Method="POST"
    )
    assert status == 403
    for method, path in (("GET", "/"), ("OPTIONS", "/api/decision")):
        _, headers, _ = request(server, method, path)
        assert not [name for name in headers if name.lower().startswith("access-control")]


# -- routes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/../../../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/page.js/../server.py",
        "/server.py",
        "/__init__.py",
        "/%2e%2e/tty.py",
        "/page.js%00",
        "//etc/passwd",
        "/api",
        "/favicon.ico",
    ],
)
def test_there_are_no_other_files(server, path):
    assert request(server, "GET", path)[0] == 404


def test_an_absolute_address_is_no_way_round(server):
    own = f"http://127.0.0.1:{server.server_port}/"
    assert request(server, "GET", "http://evil.example/")[0] == 403
    assert request(server, "GET", own)[0] == 403
    assert request(server, "GET", "http://[/")[0] == 400


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/", "GET"),
        ("PUT", "/api/item", "GET"),
        ("DELETE", "/api/item", "GET"),
        ("GET", "/api/decision", "POST"),
        ("GET", "/api/finish", "POST"),
        ("HEAD", "/", "GET"),
    ],
)
def test_wrong_methods(server, method, path, allowed):
    status, headers, _ = request(server, method, path)
    assert (status, headers["Allow"]) == (405, allowed)


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/markdown.js", "/icon.svg", "/api/item"])
def test_headers(server, path):
    status, headers, body = request(server, "GET", path)
    assert status == 200
    assert headers["Content-Security-Policy"].startswith("default-src 'self';")
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Server"] == "rlhfkit "
    if path != "/icon.svg":  # (its name space is an address that nothing fetches)
        assert b"http://" not in body
        assert b"https://" not in body


def test_the_page_has_no_inline_code_and_makes_no_html_of_text(server):
    page = request(server, "GET", "/")[2].decode()
    assert "style=" not in page
    assert not re.search(r"\son\w+=|<script>|javascript:", page)
    for path in ("/page.js", "/markdown.js"):
        code = request(server, "GET", path)[2].decode()
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "DOMParser",
            ".href",
        ):
            assert word not in code


# -- items and decisions -----------------------------------------------------------------------------------


def test_the_page_learns_texts_and_nothing_else(server):
    first = state(server)
    assert set(first["item"]) == {"key", "version", "prompt", "completions", "answer"}
    assert first["item"]["prompt"] == [{"role": "", "text": XSS}]
    assert sorted(c[0]["text"] for c in first["item"]["completions"]) == ["a0", "b0", "c0"]
    assert (first["ranked"], first["total"], first["rater"], first["previous"]) == (0, 3, "ann", None)


def test_a_decision_is_on_the_disk_before_the_next_item(server):
    status, _, body = request(
        server,
        "POST",
        "/api/decision",
        decision(server, seconds=1.24, note="n", flags=["flagged"], ratings=[7, None, 1]),
    )
    assert status == 200
    (line,) = map(json.loads, written(server))
    order = line["shown_order"]
    assert line["ranking"] == [[order[1]], sorted([order[0], order[2]])]
    assert (line["seconds"], line["note"], line["flags"]) == (1.2, "n", ["flagged"])
    assert [line["ratings"][index] for index in order] == [7, None, 1]
    reply = json.loads(body)
    assert (reply["item"]["key"], reply["ranked"], reply["previous"]) == ("k1", 1, "k0")
    assert state(server, "/api/item?key=k0")["item"]["answer"]["tiers"] == [[1], [0, 2]]


def test_the_same_request_twice_and_another_tab(server):
    first = decision(server)
    second = {**first, "decision": "another-tab"}
    assert request(server, "POST", "/api/decision", first)[0] == 200
    assert request(server, "POST", "/api/decision", first)[0] == 200
    status, _, body = request(server, "POST", "/api/decision", second)
    assert (status, json.loads(body)["item"]["key"]) == (409, "k1")
    assert len(written(server)) == 1


BAD = [
    b"",
    b"nonsense",
    b"[]",
    b"[" * 100_000,
    b'{"item":"k0","version":0,"decision":"0123456789","tiers":[[0],[1]],"note":"\\ud800"}',
    {"item": "k9"},
    {"version": True},
    {"version": "0"},
    {"decision": "short"},
    {"decision": "x" * 65},
    {"decision": "\ud7ff" * 10},
    {"tiers": "01"},
    {"tiers": [0, 1]},
    {"tiers": [[0], [True]]},
    {"tiers": [[0], [1.0]]},
    {"tiers": [[0], [10**30]]},
    {"seconds": "1"},
    {"seconds": float("nan")},
    {"seconds": -1},
    {"flags": "flagged"},
    {"flags": ["other"]},
    {"ratings": [1.5, None, None]},
    {"note": 5},
]


@pytest.mark.parametrize("body", BAD, ids=lambda b: str(b)[:30])
def test_bad_requests_write_nothing(server, body):
    sent = body if isinstance(body, bytes) else decision(server, **body)
    assert request(server, "POST", "/api/decision", sent)[0] == 422
    assert not written(server)
    assert state(server)["ranked"] == 0


def test_a_page_left_open_for_days_is_no_reason_to_refuse(server):
    assert request(server, "POST", "/api/decision", decision(server, seconds=10**400))[0] == 200


def test_bodies_are_bounded(server):
    assert request(server, "POST", "/api/decision", b" ", Content_Length=str(MOST_BYTES + 1))[0] == 413
    assert request(server, "POST", "/api/decision", b" ", Content_Length="9" * 5000)[0] == 413
    for length in ("-1", "x", None):
        assert request(server, "POST", "/api/decision", b"", Content_Length=length)[0] == 411
    assert (
        request(
            server, "POST", "/api/decision", b"0\r\n\r\n", Content_Length=None, Transfer_Encoding="chunked"
        )[0]
        == 411
    )


def test_smuggled_and_broken_requests_do_not_stop_it(server):
    for raw in (
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01" * 50,
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.server_port), 10) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
            assert b" 200 " not in answer
    assert state(server)["ranked"] == 0


def test_finish(server):
    assert request(server, "POST", "/api/finish", {})[0] == 200
    assert server.finished.wait(10)


def test_a_taken_port(server):
    with pytest.raises(CannotCreate, match="in use"):
        RankingServer(server.session, server.server_port)
