"""Run the server: load the model, listen, answer until told to stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI
from rich.console import Console

from llava_tools.chat.engine import Engine
from llava_tools.errors import UserError
from llava_tools.model.load import Assistant
from llava_tools.serve.api import ServeSettings, create_app
from llava_tools.serve.connections import PatientConnection

log = logging.getLogger(__name__)

KEY_VARIABLE = "LLAVA_TOOLS_API_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
STUCK_SECONDS = 60  # a client that takes nothing for so long has its connection closed
MOST_FILES = 65_536
GRACE_SECONDS = 10  # for answers in the making, when the server is told to stop


@dataclass(frozen=True)
class Place:
    """Where the server listens, and for how many at once."""

    host: str = "127.0.0.1"
    port: int = 8000
    max_rows: int = 8
    max_waiting: int = 64


def serve(
    assistant: Assistant, listening: socket.socket, place: Place, settings: ServeSettings
) -> None:
    """Answer the requests that come to a socket of `listen`, until SIGINT or SIGTERM."""
    if settings.api_key is None and place.host not in LOOPBACK:
        log.warning(
            "Whoever reaches %s can ask this model: %s is not set.", place.host, KEY_VARIABLE
        )
    engine = Engine(assistant, place.max_rows, place.max_waiting)
    host, port = listening.getsockname()[:2]
    note = f"{settings.name} answers at http://{host}:{port}/v1 (Ctrl-C stops it)"
    try:
        run_app(create_app(engine, settings), listening, note)
    finally:
        engine.close()


def run_app(app: FastAPI, listening: socket.socket, note: str) -> None:
    """Run an app on a socket of `listen` until SIGINT or SIGTERM; `note` says where it is."""
    server = make_server(app)
    _allow_files()

    def leave(*_: Any) -> None:
        server.should_exit = True

    # For a signal that comes before uvicorn listens to it; it also raises the one that ended it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    Console(stderr=True).print(note, highlight=False, markup=False, soft_wrap=True)
    try:
        server.run(sockets=[listening])
    finally:
        listening.close()


def make_server(app: FastAPI, **options: Any) -> uvicorn.Server:
    """Return a server for an app, with our limits on connections; `options` are uvicorn's."""
    ours: dict[str, Any] = {
        "http": PatientConnection,
        "ws": "none",
        "timeout_graceful_shutdown": GRACE_SECONDS,
        "log_level": "warning",
    }
    return uvicorn.Server(uvicorn.Config(app, **ours | options))


def _allow_files() -> None:
    """Let this process have as many connections as the system allows; often it is 1,024."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = max(soft, min(hard, MOST_FILES)) if hard >= 0 else MOST_FILES
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def key_from_environment() -> str | None:
    """Return the key that clients must give, None where the variable is not set."""
    return os.environ.get(KEY_VARIABLE) or None


def listen(place: Place) -> socket.socket:
    """Return a socket that listens. Raises UserError where the address is taken."""
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections have it from here
        stuck = 1000 * STUCK_SECONDS
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stuck)
    try:
        listening.bind((place.host, place.port))
        listening.listen(2048)  # who comes too early waits
    except OSError as error:
        raise UserError(
            f"Port {place.port} of {place.host} cannot be listened on: {error.strerror}.",
            "Choose another one with --port, or end what listens there.",
        ) from error
    return listening
