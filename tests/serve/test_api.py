"""The server as OpenAI's own client sees it."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from PIL import Image

from llava_tools.backends.messages import image_part
from llava_tools.chat.session import Session
from llava_tools.model.generate import GenerationSettings
from llava_tools.model.load import Assistant
from tests.serve.conftest import Start
from tests.waiting import wait_until

PICTURE = Image.new("RGB", (50, 40), (200, 20, 20))


def client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60)


def ask(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def look(text: str) -> list[Any]:
    return [{"role": "user", "content": [image_part(PICTURE), {"type": "text", "text": text}]}]


def test_answers_are_those_of_a_conversation(start: Start, assistant: Assistant) -> None:
    talk = client(start())
    session = Session(assistant, GenerationSettings(max_new_tokens=8), "Be brief.")
    first = "".join(session.ask("What is this?", [PICTURE])).strip()
    second = "".join(session.ask("And now?")).strip()
    messages = [{"role": "system", "content": "Be brief."}, *look("What is this?")]
    options: dict[str, Any] = dict(model="tiny", max_tokens=8, temperature=0)
    one = talk.chat.completions.create(messages=messages, **options)
    assert one.choices[0].message.content == first
    assert one.usage and session.last
    assert one.usage.completion_tokens <= 8 and one.usage.total_tokens > one.usage.prompt_tokens
    messages += [{"role": "assistant", "content": first}, *ask("And now?")]
    two = talk.chat.completions.create(messages=messages, **options)
    assert two.choices[0].message.content == second
    assert two.usage and two.usage.prompt_tokens > one.usage.prompt_tokens
    assert one.choices[0].finish_reason in ("stop", "length")


def test_a_stream_is_the_same_answer(start: Start) -> None:
    talk = client(start())
    options: dict[str, Any] = dict(
        model="tiny", max_tokens=12, temperature=0, messages=look("What?")
    )
    whole = talk.chat.completions.create(**options)
    chunks = list(
        talk.chat.completions.create(stream=True, stream_options={"include_usage": True}, **options)
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices


def test_completions_and_seeds(start: Start) -> None:
    talk = client(start())
    options: dict[str, Any] = dict(model="tiny", prompt="one two", max_tokens=8, temperature=2.0)
    said = [talk.completions.create(seed=seed, **options).choices[0].text for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]
    streamed = talk.completions.create(seed=1, stream=True, **options)
    assert "".join(chunk.choices[0].text for chunk in streamed) == said[0]


def test_models_and_health(start: Start) -> None:
    url = start(name="org/tiny")
    talk = client(url)
    assert [model.id for model in talk.models.list()] == ["org/tiny"]
    assert talk.models.retrieve("org/tiny").id == "org/tiny"
    with pytest.raises(openai.NotFoundError, match="'other' is not served here"):
        talk.models.retrieve("other")
    with pytest.raises(openai.NotFoundError, match="'other' is not served here"):
        talk.chat.completions.create(model="other", messages=ask("hi"))
    status, body = raw(url, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert status == 200 and body == {"status": "ok", "answering": 0, "waiting": 0}


def raw(url: str, request: bytes) -> tuple[int, Any]:
    """Send bytes as they are; return the status and the JSON body."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), 30) as connection:
        connection.sendall(request)
        data = b""
        while piece := connection.recv(65536):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_the_key(start: Start) -> None:
    url = start(api_key="sesame")
    assert client(url, "sesame").models.list().data
    with pytest.raises(openai.AuthenticationError, match="key is missing or wrong"):
        client(url, "wrong").models.list()
    status, _ = raw(url, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert status == 200


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"messages": []}, "messages: List should have at least 1 item"),
    "temperature": ({"temperature": -1}, "temperature: "),
    "unknown field": ({"extra_body": {"temprature": 1}}, "temprature: Extra inputs"),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools: "),
    "many answers": ({"n": 3}, "n: Input should be 1"),
    "log-probabilities": ({"top_logprobs": 3}, "top_logprobs wants logprobs"),
    "penalty": ({"presence_penalty": 2.5}, "presence_penalty: "),
    "json mode": ({"response_format": {"type": "json_object"}}, "response_format.type: "),
    "role": ({"messages": [{"role": "robot", "content": "x"}]}, "role of message 1 is 'robot'"),
    "address": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "http://a/b.png"}}],
                }
            ]
        },
        "which is not fetched",
    ),
    "broken image": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
                    ],
                }
            ]
        },
        "image of message 1",
    ),
    "too long": ({"messages": ask("word " * 5000)}, "the context of this model is"),
    "too many tokens": ({"max_tokens": 100}, "this server allows 32"),
    "no room": ({"max_tokens": 10**9}, "the context of this model is"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_are_explained(start: Start, case: str) -> None:
    change, message = WRONG[case]
    talk = client(start(max_new_tokens=32))
    options: dict[str, Any] = {"model": "tiny", "messages": ask("hi"), **change}
    with pytest.raises(openai.BadRequestError) as error:
        talk.chat.completions.create(**options)
    assert message in error.value.message and error.value.body["type"] == "invalid_request_error"  # type: ignore[index]


def test_large_requests_are_refused_however_they_come(start: Start) -> None:
    url = start(max_bytes=10_000)
    with pytest.raises(openai.APIStatusError) as error:
        client(url).chat.completions.create(model="tiny", messages=ask("x" * 20_000))
    assert error.value.status_code == 413
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    chunk = b"2000\r\n" + b"x" * 0x2000 + b"\r\n"
    status, body = raw(url, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 2 + b"0\r\n\r\n")
    assert status == 413 and "10,000 bytes" in body["error"]["message"]


def test_bodies_that_are_no_json(start: Start) -> None:
    url = start()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += b"Content-Type: application/json\r\n"
    for body in (b"{", b"[]", b"\xff\xfe", b"null", b""):
        length = f"Content-Length: {len(body)}\r\n\r\n".encode()
        status, answer = raw(url, head + length + body)
        assert status == 400 and answer["error"]["message"]
    status, answer = raw(url, b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert status == 404 and "/nowhere" in answer["error"]["message"]


def test_many_clients_at_once(start: Start) -> None:
    """A hundred ask together: all are answered, each with what it would get alone."""
    talk = client(start(max_waiting=200))
    options: dict[str, Any] = dict(model="tiny", max_tokens=4, temperature=0)
    texts = [f"question {i % 5}" for i in range(100)]

    def one(text: str) -> str | None:
        return (
            talk.chat.completions.create(messages=ask(text), **options).choices[0].message.content
        )

    alone = {text: one(text) for text in set(texts)}
    with ThreadPoolExecutor(100) as pool:
        assert list(pool.map(one, texts)) == [alone[text] for text in texts]


def test_too_many_clients_are_told_to_wait(start: Start) -> None:
    url = start(max_rows=1, max_waiting=1)
    engine = start.engine  # type: ignore[attr-defined]
    go_on, step = threading.Event(), engine._rows.step
    engine._rows.step = lambda tokens: (go_on.wait(60), step(tokens))[1]
    talk = client(url)

    def one(_: int = 0) -> int | None:
        options: dict[str, Any] = dict(model="tiny", max_tokens=3, temperature=0)
        usage = talk.chat.completions.create(messages=ask("hi"), **options).usage
        return usage and usage.completion_tokens

    with ThreadPoolExecutor(2) as pool:
        first = [pool.submit(one) for _ in range(2)]
        wait_until(lambda: engine.load() == (1, 1))
        with pytest.raises(openai.RateLimitError, match="Too many requests wait") as error:
            one()
        assert error.value.response.headers["retry-after"] == "1"
        go_on.set()
        assert [each.result() for each in first] == [3, 3]
    assert one() == 3  # there is room again
