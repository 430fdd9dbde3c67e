"""A server with a tiny model on loopback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from llava_tools.chat.engine import Engine
from llava_tools.model.load import Assistant, load_assistant
from llava_tools.serve.api import ServeSettings, create_app
from llava_tools.serve.run import Place, listen, make_server
from tests import tiny

Start = Callable[..., str]


@pytest.fixture(scope="session")
def assistant(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    return load_assistant(tiny.save_xtuner(tmp_path_factory.mktemp("m") / "m", parts, "phi3"))


@contextmanager
def running(engine: Engine, **settings: Any) -> Iterator[str]:
    """Serve on a free port; yield the base URL. `http` is a kind of connection."""
    options = {"http": settings.pop("http")} if "http" in settings else {}
    app = create_app(engine, ServeSettings(**{"name": "tiny", **settings}))
    listening = listen(Place(port=0))
    server = make_server(app, log_level="error", timeout_graceful_shutdown=1, **options)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


@pytest.fixture
def start(assistant: Assistant) -> Iterator[Start]:
    """Return a function that starts a server and gives its base URL."""
    with ExitStack() as stack:

        def begin(max_rows: int = 8, max_waiting: int = 64, **settings: Any) -> str:
            engine = Engine(assistant, max_rows, max_waiting)
            stack.callback(engine.close)
            begin.engine = engine  # type: ignore[attr-defined]
            return stack.enter_context(running(engine, **settings))

        yield begin
