"""Images by address: only public ones, checked where the connection goes, and all in time."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from llava_tools.data.addresses import Allowance, fetch_bytes, fetch_image
from llava_tools.data.timed_sockets import is_public
from llava_tools.errors import UserError
from tests.web_host import NAME, PUBLIC, dripping, let_it_be_public, png, web


def allowed(max_bytes: int = 10_000, seconds: float = 30.0) -> Allowance:
    return Allowance(max_bytes, seconds)


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let this machine pass for a public host; holds the addresses that were connected to."""
    return let_it_be_public(monkeypatch)


def test_an_image_is_fetched(public: list[str]) -> None:
    with web(200, {}, png()) as (url, asked):
        image = fetch_image(f"{url}/a/b.png?size=2", "message 1", allowed())
    assert image.getpixel((0, 0)) == (1, 2, 3)
    assert asked == [("/a/b.png?size=2", url.removeprefix("http://"))]
    assert public == [PUBLIC]


def test_what_is_asked_names_the_place_and_nobody(public: list[str]) -> None:
    with web(200, {}, png()) as (url, asked):
        host = url.removeprefix("http://")
        fetch_image(f"http://me:secret@{host}/Größe 1%20.png?q=ü", "message 1", allowed())
    assert asked == [("/Gr%C3%B6%C3%9Fe%201%20.png?q=%C3%BC", host)]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "10.1.2.3", "192.168.0.1", "169.254.169.254", "0.0.0.0", "[::1]"]
    + ["[fd00::1]", "[::ffff:10.0.0.1]", "172.16.0.9", "100.64.0.1", "224.0.0.1", "2130706433"]
    + ["[64:ff9b::10.0.0.1]", "[64:ff9b:1::1]", "[::10.0.0.1]", "[2002:a00:1::]", "[fe80::1]"],
)
def test_private_addresses_are_never_asked(host: str) -> None:
    with pytest.raises(UserError, match="inside a private network"):
        fetch_image(f"http://{host}:9/x.png", "message 1", allowed())


def test_public_addresses() -> None:
    for address in ("8.8.8.8", "::ffff:8.8.8.8", "2606:4700::1111", "64:ff9b::8.8.8.8"):
        assert is_public(address), address


def named(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let names be found at addresses, the last ones again and again; return what was looked up."""
    looked: list[str] = []
    real: Any = socket.getaddrinfo

    def find(host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        if not host.endswith(".test"):
            return real(host, port, *args, **kwargs)
        found = answers[min(len(looked), len(answers) - 1)]
        looked.append(host)
        return [(0, 0, 0, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", find)
    return looked


def test_one_private_address_of_a_name_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, ["8.8.8.8", "10.0.0.1"])
    with pytest.raises(UserError, match=r"evil.test is inside a private network"):
        fetch_image("http://evil.test/x.png", "message 1", allowed())


def test_a_name_that_changes_its_mind_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked up once: public when it is checked, the connection goes there."""
    went: list[Any] = []

    def connect(address: Any, timeout: float) -> Any:
        went.append(address)
        raise ConnectionRefusedError("Connection refused")

    monkeypatch.setattr(socket, "create_connection", connect)
    looked = named(monkeypatch, ["8.8.8.8"], ["127.0.0.1"])
    with pytest.raises(UserError, match="refused"):
        fetch_image("http://rebind.test/x.png", "message 1", allowed())
    assert went == [("8.8.8.8", 80)] and looked == ["rebind.test"]


def test_every_address_is_tried(public: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.create_connection

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        if address[0] == "8.8.8.8":
            raise OSError("Network is unreachable")
        return real(address, timeout)

    monkeypatch.setattr(socket, "create_connection", connect)
    named(monkeypatch, ["8.8.8.8", PUBLIC])
    with web(200, {}, b"found") as (url, _):
        assert fetch_bytes(url, "message 1", allowed()) == b"found"
    assert public == [PUBLIC]


def test_redirects_are_followed_only_to_public_places(public: list[str]) -> None:
    with web(302, {"Location": "http://127.0.0.1:1/secret"}, b"") as (url, _):
        with pytest.raises(UserError, match="127.0.0.1:1.*private network"):
            fetch_image(url, "message 1", allowed())
    with web(302, {"Location": "/again"}, b"") as (url, asked):
        with pytest.raises(UserError, match="more than 3 redirects"):
            fetch_image(url, "message 1", allowed())
    assert [path for path, _ in asked] == ["/", "/again", "/again", "/again"]
    for place, problem in (("http://[::1", "Invalid IPv6 URL"), ("file:///etc/x", "only http")):
        with web(302, {"Location": place}, b"") as (url, _):
            with pytest.raises(UserError, match=problem):
                fetch_image(url, "message 1", allowed())


def test_what_a_user_types_may_lie_in_their_own_network() -> None:
    with web(200, {}, b"found") as (url, asked):
        own = url.replace(NAME, "127.0.0.1") + "/cat.png"
        assert fetch_bytes(own, "you", allowed(), private=True) == b"found"
        with pytest.raises(UserError, match="inside a private network"):
            fetch_bytes(own, "you", allowed())
    assert [path for path, _ in asked] == ["/cat.png"]
    with web(302, {"Location": own}, b"") as (url, _), pytest.raises(UserError, match="private"):
        fetch_bytes(url.replace(NAME, "127.0.0.1"), "you", allowed(), private=True)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (404, b"", "the server answers 404"),
        (200, b"x" * 10_001, "more than 10,000 bytes"),
        (200, b"<html>", "image of message 1"),
    ],
)
def test_what_is_no_image(public: list[str], status: int, body: bytes, message: str) -> None:
    with web(status, {}, body) as (url, _), pytest.raises(UserError, match=message):
        fetch_image(url, "message 1", allowed())


def test_what_is_fetched_together_shares_what_is_allowed(public: list[str]) -> None:
    together = allowed(max_bytes=25)
    with web(200, {}, b"x" * 10) as (url, _):
        for _ in range(2):
            fetch_bytes(url, "message 1", together)
        with pytest.raises(UserError, match="more than 5 bytes"):
            fetch_bytes(url, "message 2", together)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/b", "http://", "gopher://x", "//a"])
def test_only_http(url: str) -> None:
    with pytest.raises(UserError, match="only http and https"):
        fetch_image(url, "message 1", allowed())


OK = b"HTTP/1.1 200 OK\r\n"
DRIPS = {
    "status": (b"", OK * 20),
    "headers": (OK, b"X-Header: value\r\n" * 20),
    "body": (OK + b"Content-Length: 300\r\n\r\n", bytes(300)),
    "a body without a length": (OK + b"\r\n", bytes(300)),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 50 + b"0\r\n\r\n"),
    "provisional answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 12),
}


@pytest.mark.parametrize("what", DRIPS)
def test_a_host_that_drips_is_left(public: list[str], what: str) -> None:
    """Every byte comes in time, the whole does not."""
    with dripping(*DRIPS[what]) as url, pytest.raises(UserError, match=r"timed out after 0\.4 s"):
        fetch_bytes(url, "message 1", allowed(seconds=0.4))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_host_that_is_slow_or_gone(public: list[str], scheme: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"{scheme}://{NAME}:{silent.getsockname()[1]}/x.png"
        with pytest.raises(UserError, match=r"timed out after 0\.2 s"):
            fetch_image(url, "message 1", allowed(seconds=0.2))
    with pytest.raises(UserError, match="refused"):
        fetch_image(url, "message 1", allowed())


def test_a_name_that_is_not_found_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: over.wait(60) and [])
    with pytest.raises(UserError, match=r"timed out after 0\.1 s"):
        fetch_image("http://slow.test/x.png", "message 1", allowed(seconds=0.1))
    over.set()
