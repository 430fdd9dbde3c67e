"""The server backend against a real HTTP server on loopback that misbehaves on demand."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llava_tools.backends.request import Failure, Reply, Request, chat
from llava_tools.backends.server import Server, ServerSettings
from llava_tools.errors import UserError
from tests.fake_openai import Answer, FakeServer, completion, fake_server


def backend(server: FakeServer, **changes: Any) -> Server:
    settings = dict(model="fake", base_url=server.url, timeout=5.0, max_retries=2)
    return Server(ServerSettings(**{**settings, **changes}))


def last(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def one(server: FakeServer, **changes: Any) -> Reply | Failure:
    return dict(backend(server, **changes).answers([chat("hello")]))[0]


def test_many_requests_are_asked_at_once_and_none_is_lost() -> None:
    together = threading.Barrier(4, timeout=10)

    def script(body: dict[str, Any]) -> str:
        together.wait()  # passes only when four are on their way
        return last(body).upper()

    with fake_server(script) as server:
        asking = backend(server, concurrency=4)
        found = dict(asking.answers(chat(f"q{i}") for i in range(12)))
    assert [found[i].text for i in range(12)] == [f"Q{i}" for i in range(12)]  # type: ignore[union-attr]
    assert asking.meter.replies == 12 and asking.meter.prompt_tokens == 120
    assert asking.meter.cost(1.0, 2.0) == pytest.approx((120 + 2 * 36) / 1e6)
    assert asking.meter.line() == "12 replies, 120 + 36 tokens (in + out)"


def test_requests_are_taken_no_earlier_than_they_can_be_asked() -> None:
    taken: list[int] = []

    def requests() -> Any:
        for i in range(100):
            taken.append(i)
            yield chat(str(i))

    with fake_server(last) as server:
        stream = backend(server, concurrency=3).answers(requests())
        for _ in range(5):
            next(stream)
        assert len(taken) <= 5 + 3
        stream.close()


def test_what_is_sent() -> None:
    request = chat(
        "q", "be brief", max_tokens=7, temperature=0.5, top_p=0.9, presence_penalty=1.5,
        stop=("\n",), top_logprobs=5, tag="never sent",
    )  # fmt: skip
    with fake_server(lambda body: "x") as server:
        list(backend(server).answers([request, Request(prompt="complete", max_tokens=1)]))
        first, second = sorted(server.asked, key=lambda body: body["_path"])
    assert first["_path"] == "/v1/chat/completions" and second["_path"] == "/v1/completions"
    sent = {name: value for name, value in first.items() if not name.startswith("_")}
    assert sent == {
        "model": "fake",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "q"}],
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "presence_penalty": 1.5,
        "stop": ["\n"],
        "logprobs": True,
        "top_logprobs": 5,
    }
    assert second["prompt"] == "complete" and "messages" not in second


def test_log_probabilities() -> None:
    alternatives = [
        {"token": "A", "logprob": -0.1, "bytes": None},
        {"token": "B", "logprob": -2.0, "bytes": None},
    ]
    content = [{"token": "A", "logprob": -0.1, "bytes": None, "top_logprobs": alternatives}]

    def script(body: dict[str, Any]) -> Answer:
        return Answer(completion("A", body["_path"], {"content": content}))

    with fake_server(script) as server:
        found = one(server)
    assert isinstance(found, Reply) and found.logprobs == ({"A": -0.1, "B": -2.0},)


def test_a_busy_server_is_waited_for_as_it_says() -> None:
    times: list[float] = []

    def script(body: dict[str, Any]) -> Answer | str:
        times.append(time.monotonic())
        return Answer({}, 429, {"Retry-After": "1"}) if len(times) == 1 else "now"

    with fake_server(script) as server:
        found = one(server)
    assert isinstance(found, Reply) and found.text == "now"
    assert times[1] - times[0] >= 1.0


HEADERS = {"Retry-After-Ms": "1"}
FAULTS = {
    "rate_limited": Answer({"error": {"message": "wait"}}, 429, HEADERS),
    "server_error": Answer({"error": {"message": "broken"}}, 503, HEADERS),
    "refused": Answer({"error": {"message": "too long"}}, 400),
    "garbage": Answer(b"<html>proxy</html>"),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_what_fails_is_a_failure_with_its_reason(reason: str) -> None:
    with fake_server(lambda body: FAULTS[reason]) as server:
        found = one(server)
    assert isinstance(found, Failure) and found.reason == reason, found


@pytest.mark.parametrize("body", [{}, {"choices": []}, completion(None, "/chat/completions"), []])
def test_replies_that_are_no_completion_are_garbage(body: Any) -> None:
    with fake_server(lambda _: Answer(body)) as server:
        found = one(server)
    assert isinstance(found, Failure) and found.reason == "garbage"


def test_a_server_that_does_not_answer_in_time() -> None:
    release = threading.Event()

    def script(body: dict[str, Any]) -> str:
        release.wait(10)
        return "late"

    with fake_server(script) as server:
        found = one(server, timeout=0.2, max_retries=0)
        release.set()
    assert found == Failure("timeout", "0.2 s an attempt")


def test_a_server_that_goes_on_and_on_has_no_more_time_than_another() -> None:
    release = threading.Event()

    def drops() -> Iterator[bytes]:
        while not release.wait(0.02):
            yield b" "

    with fake_server(lambda body: Answer(drops(), headers={"Content-Length": "9999"})) as server:
        found = one(server, timeout=0.3, max_retries=0)
        release.set()
    assert found == Failure("timeout", "0.3 s an attempt")


def hang_up(body: dict[str, Any]) -> str:
    raise ConnectionError


BROKEN: dict[str, tuple[Any, str]] = {
    "dropped": (hang_up, "no_connection"),
    "half a body": (lambda b: Answer(b'{"cho', headers={"Content-Length": "99"}), "no_connection"),
    "half a JSON": (lambda body: Answer(b'{"choices": [{"mess'), "garbage"),
    "an hour": (lambda body: Answer({}, 429, {"Retry-After": "3600"}), "rate_limited"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_breaks_on_the_way_has_a_reason(how: str) -> None:
    script, reason = BROKEN[how]
    with fake_server(script) as server:
        found = one(server, max_retries=1)
    assert isinstance(found, Failure) and found.reason == reason, found
    assert reason != "no_connection" or len(server.asked) == 2


def test_replies_survive_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from llava_tools.backends.request import chat\n"
        "from llava_tools.backends.server import Server, ServerSettings\n"
        "settings = ServerSettings('fake', sys.argv[1], cache=Path(sys.argv[2]), concurrency=2)\n"
        "for n, _ in enumerate(Server(settings).answers(chat(str(i)) for i in range(9))):\n"
        "    if n == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with fake_server(last) as server:
        words = [sys.executable, "-c", code, server.url, str(tmp_path / "replies.db")]
        assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
        before = len(server.asked)
        asking = backend(server, cache=tmp_path / "replies.db")
        found = dict(asking.answers(chat(str(i)) for i in range(9)))
    assert [found[i].text for i in range(9)] == list("012345678")  # type: ignore[union-attr]
    assert asking.meter.cached >= 5 and len(server.asked) - before == 9 - asking.meter.cached


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "http:///v1", "http://localhost:99999/v1", "http://[::1/v1"]
)
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"The base URL '{url}' is no address")):
        Server(ServerSettings("fake", base_url=url))


def test_nobody_listens_from_the_start_or_any_more(tmp_path: Path) -> None:
    kept = tmp_path / "replies.db"
    with fake_server(last) as server:
        asking = backend(server, max_retries=0, cache=kept)
        assert isinstance(dict(asking.answers([chat("a")]))[0], Reply)
    found = dict(asking.answers([chat("b")]))[0]
    assert isinstance(found, Failure) and found.reason == "no_connection"
    port = server.url.split(":")[2].split("/")[0]
    with pytest.raises(UserError, match=f"Nothing listens at 127.0.0.1, port {port}") as error:
        one(server)  # at once, in spite of eight retries
    assert "check the base URL" in error.value.hint
    again = backend(server, cache=kept)
    assert isinstance(dict(again.answers([chat("a")]))[0], Reply)  # nobody need be there


def test_a_run_ends_when_nothing_comes_any_more(tmp_path: Path) -> None:
    good = 3

    def script(body: dict[str, Any]) -> Answer | str:
        return (
            "fine" if int(last(body)) < good else FAULTS["refused" if good > 50 else "rate_limited"]
        )

    options: dict[str, Any] = dict(concurrency=1, max_retries=0, give_up_after=4)
    with fake_server(script) as server:
        asking = backend(server, cache=tmp_path / "replies.db", **options)
        with pytest.raises(UserError, match="4 requests in a row failed .*429") as error:
            list(asking.answers(chat(str(i)) for i in range(50)))
        assert "run the same command again" in error.value.hint
        assert len(server.asked) == 3 + 4
        good = 51
        again = backend(server, cache=tmp_path / "replies.db", **options)
        found = dict(again.answers(chat(str(i)) for i in range(50)))
    assert len(found) == 50 and again.meter.cached == 3
    assert again.meter.line().startswith("50 replies, 3 of them kept from before, 470 + 141")


@pytest.mark.parametrize(
    ("status", "message"), [(401, "refuses the key"), (403, "refuses the key"), (404, "not there")]
)
def test_what_would_fail_for_every_request_ends_the_run(status: int, message: str) -> None:
    with (
        fake_server(lambda body: Answer({"error": {"message": "no"}}, status)) as server,
        pytest.raises(UserError, match=message),
    ):
        one(server)


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with fake_server(last) as server:
        asking = backend(server, key_variable="MY_KEY", cache=tmp_path / "replies.db")
        list(asking.answers([chat("hello there")]))
    assert server.asked[0]["_headers"]["authorization"] == "Bearer sk-secret"
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"sk-secret" not in kept + asking.name.encode()


def test_openai_itself_wants_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        Server(ServerSettings(model="gpt"))


def test_equal_requests_with_other_tags_are_two_samples(tmp_path: Path) -> None:
    with fake_server(lambda body: "x") as server:
        asking = backend(server, cache=tmp_path / "replies.db", concurrency=1)
        requests = [chat("q", tag=tag, temperature=1.0) for tag in ("a", "b", "a")]
        found = [reply for _, reply in sorted(asking.answers(requests))]  # type: ignore[type-var]
    assert [reply.cached for reply in found] == [False, False, True]  # type: ignore[union-attr]
    assert len(server.asked) == 2


def test_a_file_that_is_no_cache_is_said(tmp_path: Path) -> None:
    (tmp_path / "replies.db").write_text(json.dumps({"not": "sqlite"}) * 100)
    with fake_server(last) as server, pytest.raises(UserError, match="cache of replies"):
        one(server, cache=tmp_path / "replies.db")
