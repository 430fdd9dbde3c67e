"""Images by address, where the server may fetch them."""

from __future__ import annotations

import socket
import threading
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from llava_tools.backends.messages import image_part
from tests.serve.conftest import Start
from tests.serve.test_api import PICTURE, client, look
from tests.waiting import wait_until
from tests.web_host import let_it_be_public, web


def by_address(*urls: str) -> list[Any]:
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}]


def answered(talk: openai.OpenAI, messages: list[Any]) -> str:
    options: dict[str, Any] = dict(model="tiny", max_tokens=8, temperature=0)
    return (
        talk.chat.completions.create(messages=messages, **options).choices[0].message.content or ""
    )


def test_an_image_by_address_is_that_image(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    let_it_be_public(monkeypatch)
    talk = client(start(allow_urls=True))
    data = image_part(PICTURE)["image_url"]["url"]
    with web(200, {}, b64decode(data.partition(",")[2])) as (url, asked):
        assert answered(talk, by_address(url)) == answered(talk, by_address(data)) != ""
    assert len(asked) == 1
    with pytest.raises(openai.BadRequestError, match="127.0.0.1 is inside a private network"):
        answered(talk, by_address("http://127.0.0.1:9/x.png"))


def test_the_images_of_a_request_share_its_limits(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_it_be_public(monkeypatch)
    talk = client(start(allow_urls=True, max_bytes=5000))
    with web(200, {}, bytes(3000)) as (url, asked), pytest.raises(openai.BadRequestError):
        answered(talk, by_address(url))
    with web(200, {}, bytes(5001)) as (url, asked):
        with pytest.raises(openai.BadRequestError, match="more than 5,000 bytes"):
            answered(talk, by_address(url, url))
    assert len(asked) == 1


def test_a_slow_host_keeps_nobody_else_waiting(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More requests wait for it than may be fetched for or prepared at once."""
    over, looked, find = threading.Event(), list[str](), socket.getaddrinfo

    def slow(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host != "slow.test":
            return find(host, *args, **kwargs)
        looked.append(host)
        over.wait(60)
        raise OSError("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    talk = client(start(allow_urls=True, max_fetching=1, max_preparing=1, fetch_seconds=60.0))

    def refused(_: int) -> str:
        with pytest.raises(openai.BadRequestError) as error:
            answered(talk, by_address("http://slow.test/x.png"))
        return str(error.value)

    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(refused, number) for number in range(3)]
        wait_until(lambda: looked)
        assert answered(talk, look("What is this?"))
        assert not any(each.done() for each in waiting)
        over.set()
        assert all("no such host" in each.result() for each in waiting)
