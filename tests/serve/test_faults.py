"""A server whose clients leave, never read, lie about images; a model that is slow or fails."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import struct
import threading
import zlib
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import urlsplit
from weakref import ref

import openai
import pytest

from llava_tools.backends import messages as messages_module
from llava_tools.chat.engine import Job
from llava_tools.model.generate import GenerationSettings
from llava_tools.serve.answers import Answer, Prompt
from llava_tools.serve.api import _Stream
from llava_tools.serve.run import Place, listen
from tests.serve.conftest import Start
from tests.serve.test_api import ask, client, look, raw
from tests.waiting import wait_until


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_leave_free_their_place(start: Start, stream: bool) -> None:
    url = start(max_new_tokens=100_000)
    engine = start.engine  # type: ignore[attr-defined]
    step = engine._rows.step

    def held(tokens: list[int]) -> Any:
        """Say nothing more until somebody has seen that the client is gone."""
        assert engine._answers[0].job.cancelled.wait(60)
        return step(tokens)

    engine._rows.step = held
    body = {"messages": ask("hi"), "temperature": 0, "stream": stream, "max_tokens": 300}
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), 30) as connection:
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + data)
        wait_until(lambda: engine.load() == (1, 0))
        answer = engine._answers[0]
    wait_until(lambda: engine.load() == (0, 0))
    assert answer.finished and len(answer.ids) == 1  # left alone, it says 78


def test_an_answer_that_takes_too_long_is_ended(start: Start) -> None:
    url = start(timeout=0.3, max_new_tokens=100_000)
    engine = start.engine  # type: ignore[attr-defined]
    slow = threading.Event()
    step = engine._rows.step
    engine._rows.step = lambda tokens: (slow.wait(0.1), step(tokens))[1]
    with pytest.raises(openai.APIStatusError, match=r"longer than 0\.3 s") as error:
        client(url).chat.completions.create(
            model="tiny", messages=ask("hi"), max_tokens=500, temperature=0
        )
    assert error.value.status_code == 504
    wait_until(lambda: engine.load() == (0, 0))


def test_a_model_that_fails_is_a_proper_status(start: Start) -> None:
    url = start()
    engine = start.engine  # type: ignore[attr-defined]
    engine._rows.join = lambda embeds: 1 / 0
    with pytest.raises(openai.InternalServerError, match="failed") as error:
        client(url).chat.completions.create(model="tiny", messages=ask("hi"))
    assert error.value.status_code == 503


def test_a_client_that_never_reads_holds_nobody_up(start: Start) -> None:
    url = start(max_rows=2, max_new_tokens=100_000)
    engine = start.engine  # type: ignore[attr-defined]
    body = {"messages": ask("hi"), "temperature": 0, "stream": True, "max_tokens": 300}
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
    parts = urlsplit(url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.connect((parts.hostname, parts.port))
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + data)
        options: dict[str, Any] = dict(model="tiny", messages=ask("hi"), max_tokens=4)
        said = [client(url).chat.completions.create(**options) for _ in range(5)]
    assert all(answer.choices[0].message.content is not None for answer in said)
    wait_until(lambda: engine.load() == (0, 0))


def bomb() -> str:
    """Return a PNG of a few bytes that says it has 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk
    data += struct.pack(">I", zlib.crc32(chunk)) + b"\x00\x00\x00\x00IEND\xaeB`\x82"
    return base64.b64encode(data).decode()


def test_hostile_images_are_refused_and_the_server_goes_on(start: Start) -> None:
    talk = client(start())
    svg = base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode()
    eps = base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").decode()
    for code in (bomb(), svg, eps, "A" * 1000):
        part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{code}"}}
        messages: Any = [{"role": "user", "content": [part]}]
        with pytest.raises(openai.BadRequestError, match="image of message 1"):
            talk.chat.completions.create(model="tiny", messages=messages)
    assert talk.chat.completions.create(model="tiny", messages=look("well?"), max_tokens=2)


def test_more_images_than_the_model_has_room_for_are_not_decoded(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = client(start())
    part = look("")[0]["content"][0]
    monkeypatch.setattr("llava_tools.backends.messages.decode_image", lambda *_: 1 / 0)
    messages: Any = [{"role": "user", "content": [part] * 200}]
    with pytest.raises(openai.BadRequestError, match="The 200 images take 800 tokens"):
        talk.chat.completions.create(model="tiny", messages=messages)


def test_images_are_decoded_one_after_the_other(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request of a few bytes may hold many large pictures: never two of them at once."""
    decode, made, most = messages_module.decode_image, list[Any](), 0

    def watched(data: bytes, where: str) -> Any:
        nonlocal most
        image = decode(data, where)
        made.append(ref(image))
        most = max(most, sum(one() is not None for one in made))
        return image

    monkeypatch.setattr(messages_module, "decode_image", watched)
    content = [look("")[0]["content"][0]] * 5
    client(start()).chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": content}], max_tokens=1
    )
    assert most <= 2  # the next one is there before the last one's name is taken


def test_texts_that_are_no_unicode_are_refused(start: Start) -> None:
    url = start()
    for body in (
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "\\ud800", "messages": [{"role": "user", "content": "hi"}]}',
        b'{"\\ud800": 1, "messages": [{"role": "user", "content": "hi"}]}',
        b'{"stop": "\\ud800", "messages": [{"role": "user", "content": "hi"}]}',
        b'{"messages": [{"role": "\\ud800", "content": "hi"}]}',
    ):
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        status, answer = raw(url, head + body)
        assert status in (400, 404), (body, answer)
        assert answer["error"]["message"]


def test_a_request_that_does_not_come_is_given_up(start: Start) -> None:
    url = start(body_seconds=0.2)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += b"Content-Length: 99\r\n\r\n{"
    status, body = raw(url, head)  # and nothing more
    assert status == 408 and "did not come within 0.2 s" in body["error"]["message"]


def test_more_requests_than_memory_is_for_are_turned_away(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_tools.serve.api.COMING", 0)
    url = start(max_rows=1, max_waiting=1)
    parts = urlsplit(url)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
    models = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(2):  # whose bodies are on their way
            connection = socket.create_connection((parts.hostname, parts.port), 30)
            stack.enter_context(connection).sendall(head)
        wait_until(lambda: raw(url, models)[0] == 429)
        assert raw(url, models.replace(b"/v1/models", b"/health"))[0] == 200
    wait_until(lambda: raw(url, models)[0] == 200)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has it")
def test_connections_that_take_nothing_are_closed_by_the_system() -> None:
    with listen(Place(port=0)) as listening:
        with socket.create_connection(listening.getsockname()):
            accepted, _ = listening.accept()
            with accepted:
                wait = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert wait == 60_000


def test_a_stream_whose_client_went_before_it_began_ends_its_answer() -> None:
    answer = Answer(chat=True, model="tiny", prompt=Prompt([1], None, 1))
    answer.job = Job([1], GenerationSettings(), lambda progress: None)

    async def events() -> AsyncIterator[str]:
        yield "never"

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise OSError("nobody is there")

    with suppress(BaseException):
        scope: Any = {"type": "http", "asgi": {"spec_version": "2.3"}}
        asyncio.run(_Stream(events(), answer)(scope, receive, send))
    assert answer.job.cancelled.is_set()
