"""A host of images under a public name, which in truth is this machine."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

NAME, PUBLIC = "pictures.test", "93.184.215.14"


def png(colour: tuple[int, int, int] = (1, 2, 3)) -> bytes:
    """Return a small image as a file."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def let_it_be_public(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let NAME be found at PUBLIC, and connections to PUBLIC come here; return where they went.

    Nothing of ours is replaced: only the system's search for names and its connections.
    """
    find, connect, went = socket.getaddrinfo, socket.create_connection, list[str]()

    def found(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        where = PUBLIC if host == NAME else host
        return find(where, port, *args, **kwargs)

    def connected(address: tuple[str, int], *args: Any, **kwargs: Any) -> socket.socket:
        host, port = address
        if host == PUBLIC:
            went.append(host)
            host = "127.0.0.1"
        return connect((host, port), *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", found)
    monkeypatch.setattr(socket, "create_connection", connected)
    return went


@contextmanager
def web(
    status: int, headers: dict[str, str], body: bytes
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Serve one answer; yield the address, and path and Host of what is asked."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Host"]))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://{NAME}:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@contextmanager
def dripping(at_once: bytes, then: bytes) -> Iterator[str]:
    """Answer `at_once` and, byte by byte for longer than anybody may wait, `then`."""
    left = threading.Event()

    def drip() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(at_once)
            for byte in then:
                if left.wait(0.05):
                    return
                try:
                    connection.sendall(bytes([byte]))
                except OSError:
                    return

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        thread = threading.Thread(target=drip)
        thread.start()
        yield f"http://{NAME}:{listening.getsockname()[1]}/x.png"
        left.set()
        thread.join()
