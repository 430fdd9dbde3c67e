"""The page on loopback, with one or two tiny models behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from llava_tools.chat.engine import Engine
from llava_tools.model.generate import GenerationSettings
from llava_tools.model.load import Assistant, load_assistant
from llava_tools.serve.run import Place, listen, make_server
from llava_tools.web.app import Start, create_page
from tests import tiny

Serve = Callable[..., str]
SETTINGS = GenerationSettings(max_new_tokens=12, stop_words=("never said",))


@pytest.fixture(scope="session")
def assistants(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Assistant]:
    root = tmp_path_factory.mktemp("models")
    families = ("phi3", "llama3")
    folders = [tiny.widen(tiny.save_xtuner(root / f"tiny-{f}", parts, f)) for f in families]
    return dict(zip(families, map(load_assistant, folders), strict=True))


@pytest.fixture
def serve(assistants: dict[str, Assistant]) -> Iterator[Serve]:
    """Return a function that serves the page with these models and gives its address."""
    with ExitStack() as stack:

        def begin(*families: str, system: str | None = None) -> str:
            engines = [Engine(assistants[family]) for family in families]
            listening = listen(Place(port=0))
            page = create_page(engines, Start(SETTINGS, system))
            server = make_server(page, log_level="error", timeout_graceful_shutdown=1)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()

            def end() -> None:
                server.should_exit = True
                thread.join(10)
                listening.close()
                for engine in engines:
                    engine.close()

            stack.callback(end)
            return f"http://127.0.0.1:{listening.getsockname()[1]}"

        yield begin
