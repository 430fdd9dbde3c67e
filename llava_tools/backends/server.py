"""Any server that speaks OpenAI's API: vLLM, SGLang, llama.cpp, Ollama, or OpenAI itself.

The `openai` client asks, waits as `Retry-After` says and tries again; what is ours is asking
several at once, keeping replies on disk and giving up where nothing comes any more.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from llava_tools.backends.cache import ReplyCache
from llava_tools.backends.deadline import deadline
from llava_tools.backends.request import Failure, Meter, Reply, Request
from llava_tools.errors import UserError, first_line

PASSING = {"timeout", "no_connection", "rate_limited", "server_error", "garbage"}
LISTENING_SECONDS = 10.0


@dataclass(frozen=True)
class ServerSettings:
    """Where the server is and how it is asked. The key is read from the variable `key_variable`.

    `timeout` is in seconds, for one attempt; `give_up_after` counts failures in a row.
    """

    model: str
    base_url: str | None = None  # None: OpenAI's own
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 120.0
    max_retries: int = 8
    give_up_after: int = 20
    cache: Path | None = None


class Server:
    """A backend over the network."""

    def __init__(self, settings: ServerSettings) -> None:
        """Raises UserError for a base URL that is none, or without `openai` or OpenAI's key."""
        if settings.base_url is not None:
            _host_and_port(settings.base_url)
        self.settings, self.meter = settings, Meter()
        self.name = f"{settings.base_url or 'openai'} {settings.model}"
        self._client = _client(settings)
        self._cache = ReplyCache(settings.cache) if settings.cache else None
        self._failed_in_a_row = 0
        self._looked = False

    def answers(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply | Failure]]:
        """Yield (position, reply or failure) as they come, `concurrency` of them on their way.

        Raises UserError where the server refuses the key or knows no such model, and after
        `give_up_after` failures in a row; replies that came are kept in the cache.
        """
        waiting: dict[Future[Reply | Failure], int] = {}
        upcoming = enumerate(requests)
        pool = ThreadPoolExecutor(self.settings.concurrency)
        try:
            while True:
                for position, request in islice(upcoming, self.settings.concurrency - len(waiting)):
                    waiting[pool.submit(self._answer, request)] = position
                if not waiting:
                    return
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    position, result = waiting.pop(future), future.result()
                    self._watch(result)
                    yield position, result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _watch(self, result: Reply | Failure) -> None:
        """Count a result; stop the run when the server is gone."""
        self.meter.count(result)
        failed = isinstance(result, Failure) and result.reason in PASSING
        self._failed_in_a_row = self._failed_in_a_row + 1 if failed else 0
        if self._failed_in_a_row >= self.settings.give_up_after:
            raise UserError(
                f"{self._failed_in_a_row} requests in a row failed at {self.name}; the last one: "
                f"{result}",
                "What was answered is kept: run the same command again when the server answers.",
            )

    def _answer(self, request: Request) -> Reply | Failure:
        """Return the kept reply, or ask. Runs in a thread of the pool."""
        key = request.key(self.name)
        kept = self._cache.get(key) if self._cache else None
        if kept is not None:
            return kept
        result = self._ask(request)
        if self._cache and isinstance(result, Reply):
            self._cache.put(key, result)
        return result

    def _ask(self, request: Request) -> Reply | Failure:
        import openai

        if not self._looked and self.settings.base_url:
            check_listening(self.settings.base_url)
        self._looked = True
        try:
            if request.prompt is None:
                return _chat_reply(self._client.chat.completions.create(**self._fields(request)))
            return _text_reply(self._client.completions.create(**self._fields(request)))
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(
                f"{self.name} refuses the key: {first_line(error):.300}",
                f"Put the right one into the environment variable {self.settings.key_variable}.",
            ) from error
        except openai.NotFoundError as error:
            raise UserError(
                f"{self.name} is not there: {first_line(error):.300}",
                "Check the base URL (most end in /v1) and the name of the model.",
            ) from error
        except openai.APITimeoutError:
            return Failure("timeout", f"{self.settings.timeout:g} s an attempt")
        except openai.APIConnectionError as error:
            return Failure("no_connection", f"{first_line(error)} {error.__cause__ or ''}".strip())
        except openai.RateLimitError as error:
            return Failure("rate_limited", f"{first_line(error):.300}")
        except openai.InternalServerError as error:
            return Failure("server_error", f"{error.status_code} {first_line(error):.300}")
        except openai.APIStatusError as error:
            return Failure("refused", f"{error.status_code} {first_line(error):.300}")
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError) as error:
            return Failure("garbage", f"{type(error).__name__}: {first_line(error):.300}")

    def _fields(self, request: Request) -> dict[str, Any]:
        """Return the request as the API wants it; what is left at its default is not sent."""
        fields: dict[str, Any] = {"model": self.settings.model, "max_tokens": request.max_tokens}
        fields["temperature"] = request.temperature
        for name, usual in (("top_p", 1.0), ("presence_penalty", 0.0), ("frequency_penalty", 0.0)):
            if getattr(request, name) != usual:
                fields[name] = getattr(request, name)
        if request.stop:
            fields["stop"] = list(request.stop)
        if request.prompt is not None:
            logprobs = {"logprobs": request.top_logprobs} if request.top_logprobs else {}
            return fields | {"prompt": request.prompt} | logprobs
        if request.top_logprobs:
            fields |= {"logprobs": True, "top_logprobs": request.top_logprobs}
        return fields | {"messages": [dict(message) for message in request.messages]}


def check_listening(base_url: str) -> None:
    """Raise UserError where nothing listens: later a server may be away, but not from the start.

    Names that are not found and slow networks are left to the retries, and so are proxies.
    """
    host, port = _host_and_port(base_url)
    if getproxies():
        return
    try:
        socket.create_connection((host, port), LISTENING_SECONDS).close()
    except ConnectionRefusedError as error:
        raise UserError(
            f"Nothing listens at {host}, port {port}.",
            "Start the server, or check the base URL.",
        ) from error
    except (OSError, ValueError):
        return


def _host_and_port(base_url: str) -> tuple[str, int]:
    """Return where a base URL leads. Raises UserError where it is none, before anybody is asked."""
    try:
        url = urlsplit(base_url)
        port = url.port or (443 if url.scheme == "https" else 80)
    except ValueError as error:
        raise _no_address(base_url, f": {error}") from error
    if url.scheme not in ("http", "https") or not url.hostname:
        raise _no_address(base_url)
    return url.hostname, port


def _no_address(base_url: str, why: str = "") -> UserError:
    return UserError(
        f"The base URL '{base_url}' is no address{why}.", "For example http://localhost:8000/v1."
    )


def _client(settings: ServerSettings) -> Any:
    try:
        import openai
    except ImportError as error:
        raise UserError(
            "Asking a server needs the package 'openai'.", "pip install 'llava-tools[api]'"
        ) from error
    key = os.environ.get(settings.key_variable)
    if not key and settings.base_url is None:
        raise UserError(
            f"OpenAI's server wants a key, and {settings.key_variable} is not set.",
            f"Set {settings.key_variable} in the environment, or name your own server's base URL.",
        )
    client = openai.DefaultHttpxClient
    return openai.OpenAI(
        api_key=key or "none",  # servers of one's own mostly want none
        base_url=settings.base_url,
        timeout=settings.timeout,
        max_retries=settings.max_retries,
        http_client=client(event_hooks=deadline(client, settings.timeout)),
    )


def _chat_reply(answer: Any) -> Reply:
    choice = answer.choices[0]
    tokens = choice.logprobs.content if choice.logprobs and choice.logprobs.content else ()
    return Reply(
        text=_text(choice.message.content),
        finish_reason=str(choice.finish_reason),
        logprobs=tuple({alt.token: alt.logprob for alt in t.top_logprobs} for t in tokens),
        prompt_tokens=_tokens(answer, "prompt_tokens"),
        completion_tokens=_tokens(answer, "completion_tokens"),
    )


def _text_reply(answer: Any) -> Reply:
    choice = answer.choices[0]
    tokens = choice.logprobs.top_logprobs if choice.logprobs else ()
    return Reply(
        text=_text(choice.text),
        finish_reason=str(choice.finish_reason),
        logprobs=tuple(dict(alternatives) for alternatives in tokens or ()),
        prompt_tokens=_tokens(answer, "prompt_tokens"),
        completion_tokens=_tokens(answer, "completion_tokens"),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"the answer has no text but {value!r:.80}")
    return value


def _tokens(answer: Any, kind: str) -> int:
    """Return what the server counted; some count nothing."""
    return int(getattr(answer.usage, kind, None) or 0)
