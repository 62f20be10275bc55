"""Files from a web server, as it is and as it fails."""

from __future__ import annotations

import base64
import contextlib
import http.server
import os
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptflow.errors import ObjectNotFoundError, StorageError, StorageUnavailableError, UsageError
from ckptflow.places import http as http_module
from ckptflow.places.files import fetched, opened, staged
from ckptflow.storage.retry import Retries
from tests.places.test_files import temporary

__all__ = ["temporary"]  # a fixture


class Web(http.server.BaseHTTPRequestHandler):
    """Answers by path; what was asked for is noted."""

    protocol_version = "HTTP/1.1"
    requests: list[str] = []  # noqa: RUF012 - cleared by the fixture
    headers_seen: list[dict[str, str]] = []  # noqa: RUF012
    redirects: dict[str, str] = {}  # noqa: RUF012 - where to, by name

    def do_GET(self) -> None:
        Web.requests.append(self.path)
        name = self.path.partition("?")[0].rpartition("/")[2]
        Web.headers_seen.append(dict(self.headers.items()))
        if name in Web.redirects:
            self.send_response(302)
            self.send_header("Location", Web.redirects[name].encode().decode("latin-1"))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif name == "missing":
            self.send_error(404)
        elif name == "broken":
            self.send_error(503)
        elif name in ("short", "endless"):
            self.send_response(200)
            self.send_header("Content-Length", str(2**20)) if name == "short" else self.send_header(
                "Connection", "close"
            )
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(1 if name == "short" else 10_000):
                    self.wfile.write(bytes(10_000))
            self.close_connection = True
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(3 * 2**20))
            self.end_headers()
            self.wfile.write(b"abc" * 2**20)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(http_module, "Retries", lambda **_: Retries(max_tries=2, first_wait_s=0.01))
    for seen in (Web.requests, Web.headers_seen, Web.redirects):
        seen.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_file_from_the_web(web: str) -> None:
    with fetched(f"{web}/google/nnlm/1?tf-hub-format=compressed") as path:
        assert os.path.basename(path) == "1.tar.gz"
        assert Path(path).read_bytes() == b"abc" * 2**20
    with opened(f"{web}/models/m.keras?v=3&token=PLANTED-0123456789") as file:
        assert os.path.basename(str(file.name)) == "m.keras"
        file.seek(3 * 2**20 - 3)
        assert file.read() == b"abc"
    with fetched(f"{web}/a/%2e%2e%2fescaped") as path:
        assert os.path.basename(path) == "file"
    assert Web.requests[:2] == [
        "/google/nnlm/1?tf-hub-format=compressed",
        "/models/m.keras?v=3&token=PLANTED-0123456789",
    ]


@pytest.mark.parametrize(
    ("name", "max_bytes", "error", "match"),
    [
        ("missing", 2**30, ObjectNotFoundError, "not found"),
        ("broken", 2**30, StorageUnavailableError, "try again later"),
        ("short", 2**30, StorageUnavailableError, "try again later"),
        ("endless", 2**20, UsageError, "at most 1,048,576 are fetched"),
        ("m.keras", 2**20, UsageError, "3,145,728 bytes"),
    ],
)
def test_a_web_that_fails(web: str, name: str, max_bytes: int, error: type[Exception], match: str) -> None:
    url = f"{web}/{name}?signature=PLANTED-0123456789abcdef"
    with pytest.raises(error, match=rf"{web}/{name}.*{match}") as raised, fetched(url, max_bytes=max_bytes):
        pass
    assert "PLANTED" not in "".join(map(str, (raised.value, raised.value.__cause__)))
    assert len(Web.requests) == (2 if error is StorageUnavailableError else 1)


PLANTED = {"X-Token": "PLANTED-HEADER", "Cookie": "session=PLANTED-COOKIE"}


def test_what_is_set_for_one_server_is_not_told_to_another(web: str) -> None:
    elsewhere = web.replace("127.0.0.1", "localhost")
    options = {"headers": PLANTED, "client_kwargs": {"headers": {"X-Session": "PLANTED-SESSION"}}}
    Web.redirects |= {"here": "/near/m.keras", "there": f"{elsewhere}/far/m.keras", "back": f"{elsewhere}/again"}
    Web.redirects["again"] = f"{web}/m.keras"
    with fetched(f"{web}/here", options) as path:
        assert Path(path).read_bytes() == b"abc" * 2**20
    assert [headers.get("X-Token") for headers in Web.headers_seen] == ["PLANTED-HEADER"] * 2
    assert [headers.get("X-Session") for headers in Web.headers_seen] == ["PLANTED-SESSION"] * 2
    Web.headers_seen.clear()
    with fetched(f"{web.replace('://', '://me:PLANTED-LOGIN@')}/there", options) as path:
        assert Path(path).read_bytes() == b"abc" * 2**20
    with fetched(f"{web}/back", options):
        pass
    told = [any("PLANTED" in value or "Basic" in value for value in each.values()) for each in Web.headers_seen]
    assert told == [True, False, True, False, False]


def test_a_login_stays_within_the_origin(web: str) -> None:
    """Whether a redirect names a path alone, or all of a URL."""
    elsewhere = web.replace("127.0.0.1", "localhost")
    Web.redirects |= {"path": "/next", "next": f"{web}/a/m.keras", "out": f"{elsewhere}/back", "back": f"{web}/m.keras"}
    Web.redirects["host"] = f"//{web.partition('://')[2]}/m.keras"
    mine = web.replace("://", "://me:se%3Acret%40@")
    for name, told in (("path", [True, True, True]), ("host", [True, True]), ("out", [True, False, False])):
        Web.headers_seen.clear()
        with fetched(f"{mine}/{name}") as path:
            assert Path(path).read_bytes() == b"abc" * 2**20
        logins = [each.get("Authorization") for each in Web.headers_seen]
        wanted = "Basic " + base64.b64encode(b"me:se:cret@").decode()
        assert logins == [wanted if is_told else None for is_told in told]


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://0xa9fea9fe/",
        "http://169.254.169.254./",
        "http://2852039166/",
        "http://169.16689662/",
        "http://0251.0376.0251.0376/",
        "http://\uff11\uff16\uff19.254.169.254/",
        "http://169\u3002254\u3002169\u3002254/",
        "http://\u2460\u2465\u2468.254.169.254/",
        "http://[fe80::1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[::169.254.169.254]/",
        "http://[64:ff9b::169.254.169.254]/",
        "http://[64:ff9b:1::a9fe:a9fe]/",
        "http://[2002:a9fe:a9fe::1]/",
        "http://[2001:0:0:0:0:0:5601:5601]/",
        "http://[fd00:ec2::254]/",
        "http://[fd00:ec2::23]/v1/credentials",
        "http://[fd20:ce::254]/",
        "http://168.63.129.16/",
        "http://100.100.100.200/",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
    ],
)
def test_a_redirect_to_where_none_must_lead(web: str, target: str) -> None:
    Web.redirects["m.keras"] = target
    with pytest.raises(StorageError, match=r"m.keras: cannot read: a redirect to .* is not followed") as raised:
        fetched(f"{web}/m.keras").__enter__()
    assert type(raised.value) is StorageError
    assert len(Web.requests) == 1


def test_a_redirect_to_less_safety_is_not_followed() -> None:
    http_module._check_redirect("https://a/x", "https://b:8443/y")
    http_module._check_redirect("http://a/x", "https://a/y")
    for target in ("http://a/x", "HTTP://b/x"):
        with pytest.raises(http_module.RefusedRedirectError, match="from https to http"):
            http_module._check_redirect("https://a/x?sig=PLANTED", target)


def test_a_login_for_another_origin_is_not_sent_there(
    web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever redirects chooses the host, and so whose login of ~/.netrc it would be."""
    elsewhere = web.replace("127.0.0.1", "localhost")
    (tmp_path / "netrc").write_text("default login me password PLANTED\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    Web.redirects["m.keras"] = f"{elsewhere}/far.keras"
    with fetched(f"{web}/m.keras"):
        pass
    assert len(Web.headers_seen) == 2
    assert "Authorization" not in Web.headers_seen[1]


def test_redirects_go_through_the_proxy_of_the_environment(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is the proxy as well: it is asked by a whole URL."""
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", web.replace("http://", "http://me:mine@"))
    Web.redirects["m.keras"] = "http://host.example/far.keras"
    monkeypatch.setenv("no_proxy", web.partition("://")[2].partition("/")[0])
    with fetched(f"{web}/m.keras"):
        pass
    assert Web.requests[-1] == "http://host.example/far.keras"
    assert "Proxy-Authorization" in Web.headers_seen[-1]
    assert "Authorization" not in Web.headers_seen[-1]


def test_redirects_in_a_circle_end(web: str) -> None:
    Web.redirects |= {"a": "b", "b": "a"}
    with pytest.raises(StorageError, match="more than 10 redirects"):
        fetched(f"{web}/a").__enter__()


QUERIES = [
    "sig=PLANTED",
    "sig=PLAN%54ED%2Fx%2By%3D&v=1",
    "v=1&token=PLANTED%20x",
    "PLANTED",
    "x=me@PLANTED&sig=PLANTED",
]


@pytest.mark.parametrize("name", ["missing", "broken", "short", "endless"])
@pytest.mark.parametrize("query", QUERIES)
def test_no_traceback_shows_a_query(web: str, name: str, query: str) -> None:
    with pytest.raises((StorageError, UsageError)) as raised:
        fetched(f"{web}/{name}?{query}", max_bytes=2**20).__enter__()
    link: BaseException | None = raised.value
    shown = "".join(traceback.format_exception(raised.value))
    while link is not None:
        shown += f"{link} {link!r}"
        link = link.__cause__ or link.__context__
    assert "PLANTED" not in shown
    assert "PLAN%54ED" not in shown


def test_nothing_is_written_to_the_web(web: str) -> None:
    with pytest.raises(UsageError, match="web server"), staged(f"{web}/m.keras", overwrite=True):
        pass
    assert Web.requests == []
