"""The HTTP API: /v1/chat/completions, /v1/completions, /v1/models and /health."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from llava_tools.backends.messages import Opener, count_addresses
from llava_tools.chat.engine import Engine
from llava_tools.chat.sampling import Chosen
from llava_tools.data.addresses import Allowance, fetch_image
from llava_tools.serve.answers import (
    Answer,
    Prompt,
    chat_prompt,
    event,
    extras_of,
    settings_of,
    text_prompt,
)
from llava_tools.serve.errors import RESPONSES, ApiError, add_error_handlers, error_response
from llava_tools.serve.limits import Limits
from llava_tools.serve.logprobs import Logprobs
from llava_tools.serve.schema import ChatRequest, CompletionRequest

ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A completion, or its pieces as server-sent events where `stream` is true.",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"type": "object", "required": ["data"]}},
        },
    }
}
COMING = 32  # requests that may come in while others are answered or wait
WATCH_SECONDS = 0.25  # how often a waiting answer looks whether its client is still there


@dataclass(frozen=True)
class ServeSettings:
    """Limits of a server. `api_key` None lets everybody in; `timeout` is in seconds."""

    name: str
    api_key: str | None = None
    max_bytes: int = 32 * 2**20
    max_new_tokens: int = 2048
    timeout: float = 600.0
    allow_urls: bool = False
    max_preparing: int = 4  # requests whose images are decoded at the same time
    max_fetching: int = 8  # requests whose images are fetched at the same time
    fetch_seconds: float = 20.0  # for all images of a request together
    body_seconds: float = 60.0  # for a request to come in


def create_app(engine: Engine, settings: ServeSettings) -> FastAPI:
    """Return the app that answers with an engine."""
    app = FastAPI(title="llava-tools", version="1", responses=RESPONSES)
    app.add_middleware(
        Limits,
        max_bytes=settings.max_bytes,
        api_key=settings.api_key,
        max_inside=engine.max_rows + engine.max_waiting + COMING,
        seconds=settings.body_seconds,
    )
    add_error_handlers(app)
    desk = _Desk(engine, settings)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Say that the server is there, and how much it has to do."""
        answering, waiting = engine.load()
        return {"status": "ok", "answering": answering, "waiting": waiting}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the one model."""
        return {"object": "list", "data": [_model(settings.name)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """Describe the model."""
        desk.check_model(name)
        return _model(settings.name)

    @app.post("/v1/chat/completions", response_model=None, responses=ANSWERS)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a dialogue with text and images."""
        prepare = partial(chat_prompt, engine.assistant, body, desk.opener())
        return await desk.answer(body, request, prepare)

    @app.post("/v1/completions", response_model=None, responses=ANSWERS)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Go on with a text."""
        return await desk.answer(body, request, partial(text_prompt, engine.assistant, body))

    return app


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "llava-tools"}


class _Stream(StreamingResponse):
    """A streamed answer, which ends with its client even if nothing of it was sent yet."""

    def __init__(self, events: AsyncIterator[str], answer: Answer) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()


class _Desk:
    """Takes requests to the engine and answers back."""

    def __init__(self, engine: Engine, settings: ServeSettings) -> None:
        self.engine, self.settings = engine, settings
        # Apart: who waits for a slow host keeps nobody waiting who sends images.
        self._decoding = ThreadPoolExecutor(settings.max_preparing, "decode")
        self._fetching = ThreadPoolExecutor(settings.max_fetching, "fetch")

    def check_model(self, name: str | None) -> None:
        """Raise ApiError for another model than the one that is served."""
        if name is not None and name != self.settings.name:
            text = f"The model '{name:.80}' is not served here, but '{self.settings.name}'."
            raise ApiError(404, text, "model")

    def opener(self) -> Opener | None:
        """Return what opens images by their address, None where that is not allowed."""
        if not self.settings.allow_urls:
            return None
        allowed = Allowance(self.settings.max_bytes, self.settings.fetch_seconds)
        return partial(fetch_image, allowed=allowed)

    async def answer(
        self,
        body: ChatRequest | CompletionRequest,
        request: Request,
        prepare: Callable[[], Prompt],
    ) -> Response:
        """Answer a request, whole or as a stream."""
        self.check_model(body.model)
        if sum(self.engine.load()) >= self.engine.max_rows + self.engine.max_waiting:
            raise ApiError(429, "Too many requests wait already; try again.")
        fetches = isinstance(body, ChatRequest) and count_addresses(body.messages)
        threads = self._fetching if fetches else self._decoding
        prompt = await asyncio.get_running_loop().run_in_executor(threads, prepare)
        engine, longest = self.engine, self.settings.max_new_tokens
        how = settings_of(body, prompt, engine.assistant, longest)
        answer = Answer(isinstance(body, ChatRequest), self.settings.name, prompt)
        answer.start(engine, how, extras_of(body))
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            return _Stream(self._stream(answer, usage), answer)
        return await self._whole(answer, request)

    async def _whole(self, answer: Answer, request: Request) -> Response:
        """Wait for the whole answer; give up on it when its client has gone."""
        collecting = asyncio.ensure_future(self._collected(answer))
        try:
            while not collecting.done():
                await asyncio.wait({collecting}, timeout=WATCH_SECONDS)
                if not collecting.done() and await request.is_disconnected():
                    return error_response(503, "The client has gone.")
            return JSONResponse(collecting.result())
        finally:
            answer.cancel()
            collecting.cancel()

    async def _collected(self, answer: Answer) -> dict[str, Any]:
        texts: list[str] = []
        chosen: list[Chosen] = []
        finish = "stop"
        async for progress in answer.pieces(self.settings.timeout):
            texts.append(progress.text)
            chosen += progress.chosen
            finish = progress.finish or finish
        logprobs = Logprobs(self.engine.assistant.tokenizer).of(chosen)
        return answer.whole("".join(texts), finish, logprobs)

    async def _stream(self, answer: Answer, usage: bool) -> AsyncIterator[str]:
        """Yield the events of an answer; a client that goes away ends it."""
        logprobs = Logprobs(self.engine.assistant.tokenizer)
        try:
            yield answer.chunk("", None, first=True)
            async for progress in answer.pieces(self.settings.timeout):
                if progress.text or progress.chosen:
                    yield answer.chunk(progress.text, None, logprobs.of(progress.chosen))
                if progress.finish:
                    yield answer.chunk(None, progress.finish)
            if usage:
                yield answer.usage_chunk()
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield event({"error": {"message": error.message, "type": "server_error"}})
