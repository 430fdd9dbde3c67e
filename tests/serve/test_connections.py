"""Connections that ask nothing, ask byte by byte, or go on for ever: others are answered."""

from __future__ import annotations

import json
import select
import socket
import threading
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from llava_tools.serve.connections import PatientConnection
from tests.serve.conftest import Start
from tests.serve.test_api import ask, client, raw
from tests.waiting import wait_until

MODELS = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"


def kind(seconds: float = 600.0, few: float = 0.2, most: int = 256) -> type[PatientConnection]:
    """Return connections with other limits."""
    limits: dict[str, Any] = {"seconds": seconds, "few": few, "most": most}
    return type("Limited", (PatientConnection,), limits)


def opened(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), 60)


def rest_of(connection: socket.socket) -> bytes:
    """Return what comes until the server closes the connection."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


def ended(connections: list[socket.socket]) -> set[int]:
    """Return the descriptors of those that the server has closed."""
    watched = select.poll()
    for connection in connections:
        watched.register(connection, select.POLLIN)
    return {number for number, _ in watched.poll(0)}


def test_many_idle_connections_keep_nobody_out(start: Start) -> None:
    url = start(http=kind(most=40))
    with ExitStack() as stack:
        idle = [stack.enter_context(opened(url)) for _ in range(400)]
        said = client(url).chat.completions.create(model="tiny", messages=ask("hi"), max_tokens=2)
        assert said.choices[0].message.content is not None
        wait_until(lambda: len(ended(idle)) >= 360)
        said_by = [one for one in idle if one.fileno() not in ended(idle) and asks(one)]
        assert said_by  # those that are left may still ask


def asks(connection: socket.socket) -> bool:
    with suppress(OSError):  # it is closed just now
        connection.sendall(MODELS.replace(b"Host", b"Connection: close\r\nHost"))
        return rest_of(connection).startswith(b"HTTP/1.1 200")
    return False


def test_connections_that_are_asking_are_not_closed_for_others(start: Start) -> None:
    url = start(http=kind(most=2))
    engine = start.engine  # type: ignore[attr-defined]
    body = json.dumps({"messages": ask("hi"), "max_tokens": 2}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: application/json\r\nConnection: close\r\n\r\n"
    with opened(url) as asking, ExitStack() as stack:
        asking.sendall(head.encode() + body[:5])
        idle = [stack.enter_context(opened(url)) for _ in range(20)]
        assert rest_of(idle[-1]) == b""
        asking.sendall(body[5:])
        assert rest_of(asking).startswith(b"HTTP/1.1 200")
    wait_until(lambda: engine.load() == (0, 0))


def test_connections_without_a_request_are_closed(start: Start) -> None:
    url = start(http=kind(seconds=0.3))
    with opened(url) as silent:
        assert rest_of(silent) == b""
    with opened(url) as done:  # and those that never finish the next one
        done.sendall(MODELS + b"GET /v1/mod")
        assert rest_of(done).startswith(b"HTTP/1.1 200")


def test_headers_that_do_not_come_are_given_up(start: Start) -> None:
    status, body = raw(start(http=kind(seconds=0.3)), MODELS[:-2])
    assert status == 408 and "did not come within 0.3 s" in body["error"]["message"]


def test_headers_that_do_not_end_are_refused(start: Start) -> None:
    head = MODELS[:-2] + b"X-Long: " + b"x" * 200_000
    with opened(start()) as connection:
        connection.sendall(head)
        data = rest_of(connection)
    answer = json.loads(data.partition(b"\r\n\r\n")[2])
    assert data.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert answer["error"]["type"] == "invalid_request_error"


def test_a_body_that_goes_on_after_its_refusal_is_cut(start: Start) -> None:
    url = start(http=kind(seconds=0.3), api_key="sesame")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n"
    with opened(url) as connection:
        connection.sendall(head)
        assert connection.recv(65536).startswith(b"HTTP/1.1 401")
        with pytest.raises(OSError):  # noqa: PT011 - reset, broken pipe: whatever the system says
            while True:
                connection.sendall(b"x" * 1000)


def test_a_body_that_is_broken_ends_its_request(start: Start) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    url = start()
    status, body = raw(url, head + b"5\r\nhello\r\nnonsense\r\n")
    assert status == 400 and body["error"]["message"] == "Invalid HTTP request received."
    assert client(url).models.list().data


def test_answers_may_take_longer_than_a_request_to_begin(start: Start) -> None:
    url = start(http=kind(seconds=0.1))
    engine = start.engine  # type: ignore[attr-defined]
    step = engine._rows.step
    slow = threading.Event()
    engine._rows.step = lambda tokens: (slow.wait(0.2), step(tokens))[1]
    said = client(url).chat.completions.create(
        model="tiny", messages=ask("hi"), max_tokens=4, temperature=0
    )
    assert said.usage and said.usage.completion_tokens == 4
    assert isinstance(said, openai.types.chat.ChatCompletion)
