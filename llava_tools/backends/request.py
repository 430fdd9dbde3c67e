"""What is asked and what comes back, whoever answers.

A `Backend` answers many requests at once and gives each back as it comes, an answer that failed as
a `Failure`: one bad reply never ends a run of thousands.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

# Why there is no answer. Of the first kind, the next request may well be answered.
FAILURE_REASONS = {
    "timeout": "no answer within the time allowed",
    "no_connection": "no connection to the server",
    "rate_limited": "the server goes on asking to wait (429)",
    "server_error": "the server failed (5xx)",
    "garbage": "the reply is no chat completion",
    "refused": "the server refuses this request (4xx)",
}


@dataclass(frozen=True)
class Request:
    """One question. Either `messages` in OpenAI's chat form, or a bare `prompt` to complete.

    `top_logprobs` asks for that many alternatives of every token. `tag` goes to nobody: it tells
    two equal requests apart that want two samples.
    """

    messages: tuple[Mapping[str, Any], ...] = ()
    prompt: str | None = None
    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0
    tag: str = ""

    def key(self, backend: str) -> str:
        """Return what a reply of `backend` (its name) to this request is kept under."""
        content = json.dumps([backend, asdict(self)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def chat(text: str, system: str = "", **options: Any) -> Request:
    """Return a request of one user message, after a system text where there is one."""
    messages: list[Mapping[str, Any]] = [{"role": "system", "content": system}] if system else []
    return Request(messages=(*messages, {"role": "user", "content": text}), **options)


@dataclass(frozen=True)
class Reply:
    """An answer. `logprobs` has for every token the alternatives and their log-probabilities.

    `finish_reason` is `stop` or `length` (cut at `max_tokens`).
    """

    text: str
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: tuple[Mapping[str, float], ...] = ()
    cached: bool = False


@dataclass(frozen=True)
class Failure:
    """A request without an answer: a key of FAILURE_REASONS, and what was found."""

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return ": ".join(filter(None, (FAILURE_REASONS[self.reason], self.detail)))


class Backend(Protocol):
    """Somebody who answers. `name` says who, for manifests; it holds no secret."""

    name: str
    meter: Meter

    def answers(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply | Failure]]:
        """Yield (position of the request, what came back) as answers come, in any order.

        Requests are taken from the iterable no earlier than they can be asked.
        """


@dataclass
class Meter:
    """What was asked so far, and what it took."""

    replies: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    first_failure: Failure | None = None

    def count(self, result: Reply | Failure) -> None:
        """Add one result. Tokens of a reply that was kept on disk cost nothing again."""
        if isinstance(result, Failure):
            self.failures[result.reason] += 1
            self.first_failure = self.first_failure or result
            return
        self.replies += 1
        if result.cached:
            self.cached += 1
        else:
            self.prompt_tokens += result.prompt_tokens
            self.completion_tokens += result.completion_tokens

    def cost(self, prompt_price: float, completion_price: float) -> float:
        """Return the cost, of prices a million tokens."""
        tokens = self.prompt_tokens * prompt_price + self.completion_tokens * completion_price
        return tokens / 1e6

    def line(self) -> str:
        """Return the counts as one line: failures by reason, and what the first one was."""
        failed, first = sum(self.failures.values()), f"{self.first_failure}"
        why = ", ".join(f"{count:,} x {reason}" for reason, count in self.failures.most_common())
        parts = [f"{self.replies:,} replies"]
        parts += [f"{self.cached:,} of them kept from before"] if self.cached else []
        parts += [f"{failed:,} failed ({why}; the first: {first:.200})"] if failed else []
        return ", ".join(
            [*parts, f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens (in + out)"]
        )
