"""From a request to the engine and back: prompts, and answers whole or piece by piece."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import torch

from llava_tools.backends.messages import Opener, count_images, read_messages
from llava_tools.chat.engine import Busy, Engine, Job, Progress
from llava_tools.chat.sampling import Extras
from llava_tools.constants import IMAGE_TOKEN_ID
from llava_tools.data.codec import codec_of
from llava_tools.data.render import render_prompt
from llava_tools.errors import UserError
from llava_tools.model.generate import GenerationSettings, check_prompt
from llava_tools.model.load import Assistant
from llava_tools.serve.errors import ApiError
from llava_tools.serve.schema import ChatRequest, CompletionRequest


@dataclass
class Prompt:
    """What goes to the model: ids, pixels [k, 3, H, W], and how many places they take."""

    ids: list[int]
    pixels: torch.Tensor | None
    places: int


def chat_prompt(assistant: Assistant, request: ChatRequest, open_url: Opener | None) -> Prompt:
    """Render the messages of a request. Raises UserError for what cannot be asked.

    Images that the model has no room for are not decoded, the others one after the other: a few
    bytes may become a large picture.
    """
    count, reach = count_images(request.messages), assistant.reach
    places = count * assistant.model.num_patches
    if count and assistant.image_processor is not None and reach is not None and places >= reach:
        raise UserError(
            f"The {count} images take {places} tokens; the context of this model is {reach}.",
            "Send fewer images.",
        )
    turns, seen = read_messages(request.messages, open_url, lambda image: assistant.pixels([image]))
    pixels = torch.cat(seen) if seen else None
    return _sized(assistant, render_prompt(turns, assistant.template, assistant.tokenizer), pixels)


def text_prompt(assistant: Assistant, request: CompletionRequest) -> Prompt:
    """Return the text of a request after BOS, special tokens in it as plain text."""
    codec = codec_of(assistant.tokenizer)
    if control := codec.control_string(request.prompt):
        raise UserError(f"The prompt contains '{control}', a control token of this model.")
    return _sized(assistant, codec.bos + codec.encode(request.prompt), None)


def _sized(assistant: Assistant, ids: list[int], pixels: torch.Tensor | None) -> Prompt:
    check_prompt(ids)
    more = assistant.model.num_patches - 1
    return Prompt(ids, pixels, len(ids) + ids.count(IMAGE_TOKEN_ID) * more)


def settings_of(
    request: ChatRequest | CompletionRequest, prompt: Prompt, assistant: Assistant, longest: int
) -> GenerationSettings:
    """Return how to answer. Raises ApiError where the model's context has no room for it."""
    context = assistant.reach
    room = context - prompt.places if context else longest
    wanted = getattr(request, "max_completion_tokens", None) or request.max_tokens
    if room < (wanted or 1):
        raise ApiError(
            400,
            f"The prompt has {prompt.places} tokens and {wanted or 1} are wanted; "
            f"the context of this model is {context}.",
            "messages" if isinstance(request, ChatRequest) else "prompt",
        )
    if wanted is not None and wanted > longest:
        raise ApiError(400, f"max_tokens is {wanted}; this server allows {longest}.", "max_tokens")
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return GenerationSettings(
        max_new_tokens=wanted or min(room, longest),
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        repetition_penalty=request.repetition_penalty,
        seed=uuid.uuid4().int % 2**63 if request.seed is None else request.seed % 2**63,
        stop_words=tuple(word for word in stop if word),
    )


def extras_of(request: ChatRequest | CompletionRequest) -> Extras:
    """Return what OpenAI's API has beyond our settings. Raises ApiError for half a wish."""
    top = None
    if isinstance(request, ChatRequest):
        if request.top_logprobs and not request.logprobs:
            raise ApiError(400, "top_logprobs wants logprobs: true beside it.", "top_logprobs")
        top = request.top_logprobs or 0 if request.logprobs else None
    return Extras(request.presence_penalty or 0.0, request.frequency_penalty or 0.0, top)


@dataclass
class Answer:
    """One answer on its way: what the engine tells arrives here, in the server's own loop."""

    chat: bool
    model: str
    prompt: Prompt
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    tokens: int = 0
    job: Job | None = None
    _told: asyncio.Queue[Progress] = field(default_factory=asyncio.Queue)

    def start(self, engine: Engine, settings: GenerationSettings, extras: Extras) -> None:
        """Hand the request to the engine. Raises ApiError where too many wait."""
        loop = asyncio.get_running_loop()

        def tell(progress: Progress) -> None:
            loop.call_soon_threadsafe(self._told.put_nowait, progress)

        self.job = Job(self.prompt.ids, settings, tell, self.prompt.pixels, extras)
        try:
            engine.submit(self.job)
        except Busy as error:
            raise ApiError(429, "Too many requests wait already; try again.") from error

    def cancel(self) -> None:
        """Stop answering: nobody waits for it."""
        if self.job is not None:
            self.job.cancelled.set()

    async def pieces(self, timeout: float) -> AsyncIterator[Progress]:
        """Yield what comes until the end. Raises ApiError after `timeout` seconds, or a failure."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                wait = max(0.0, deadline - time.monotonic())
                progress = await asyncio.wait_for(self._told.get(), wait)
            except asyncio.TimeoutError as error:
                text = f"The answer took longer than {timeout:g} s."
                raise ApiError(504, text) from error
            self.tokens = progress.tokens
            if progress.finish in ("failed", "cancelled"):
                raise ApiError(503, f"The answer was {progress.finish}. {progress.error}".strip())
            yield progress
            if progress.finish:
                return

    def usage(self) -> dict[str, int]:
        """Return the counts of tokens; an image counts as the places it takes."""
        return {
            "prompt_tokens": self.prompt.places,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt.places + self.tokens,
        }

    def whole(self, text: str, finish: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        message = {"message": {"role": "assistant", "content": text, "refusal": None}}
        choice = message if self.chat else {"text": text}
        kind = "chat.completion" if self.chat else "text_completion"
        return self._head(kind) | {
            "choices": [{"index": 0, "finish_reason": finish, "logprobs": logprobs, **choice}],
            "usage": self.usage(),
        }

    def chunk(
        self,
        text: str | None,
        finish: str | None,
        logprobs: dict[str, Any] | None = None,
        *,
        first: bool = False,
    ) -> str:
        """Return one event of a streamed answer."""
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        delta |= {} if text is None else {"content": text}
        choice = {"delta": delta} if self.chat else {"text": text or ""}
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        choices = [{"index": 0, "finish_reason": finish, "logprobs": logprobs, **choice}]
        return event(self._head(kind) | {"choices": choices})

    def usage_chunk(self) -> str:
        """Return the last event of a stream whose client asked for the counts."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return event(self._head(kind) | {"choices": [], "usage": self.usage()})

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.chat else "cmpl"
        name = {"id": f"{prefix}-{self.id}", "object": kind}
        return name | {"created": self.created, "model": self.model}


def event(body: Any) -> str:
    """Return a server-sent event with a JSON body."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
