"""Connections that ask nothing: how long a server keeps them, and how many.

uvicorn ends a connection that is idle after an answer, and never one that has asked nothing yet,
sends its headers byte by byte, or goes on with a body that is refused already. Enough of those
take every file descriptor that the process may have.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from uvicorn.protocols.http.h11_impl import H11Protocol

from llava_tools.serve.errors import error_response


class PatientConnection(H11Protocol):
    """A connection that has `seconds` for a request to begin, `few` where there are over `most`.

    Headers belong to the beginning of a request; the middleware has limits for its body, h11 for
    the size of headers.
    """

    seconds = 20.0
    few = 1.0
    most = 256
    since = 0.0  # by the loop's clock: when it was opened, or had its last answer
    refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self.since = self.loop.time()
        self._watch = self.loop.call_later(self.few, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._watch.cancel()
        super().connection_lost(exc)

    @property
    def waits(self) -> bool:
        """Whether the connection is open, and no request of it is being answered."""
        free = self.refused or self.cycle is None or self.cycle.response_complete
        return free and not self.transport.is_closing()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self.since = self.loop.time()
        super().on_response_complete()

    def data_received(self, data: bytes) -> None:
        """Take what comes; after a refusal it is dropped."""
        if not self.refused:
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are no request, in the form of all errors."""
        if self.cycle is None or self.cycle.response_complete:
            return self._refuse(400, msg)
        if self.cycle.response_started:
            self.transport.close()
        else:
            self._refuse(400, msg)
        self.cycle.disconnected = True  # for the app nobody is there any more
        self.cycle.message_event.set()

    def _look(self) -> None:
        """Close a connection that waits for too long; else look again when it might."""
        age = self.loop.time() - self.since if self.waits else 0.0
        limit = self.few if len(self.connections) > self.most else self.seconds
        if age >= limit:
            self._end()
        else:
            self._watch = self.loop.call_later(limit - age, self._look)

    def _end(self) -> None:
        begun, _ = self.conn.trailing_data
        if begun and self.cycle is None and not self.refused:
            self._refuse(408, f"The request did not come within {self.seconds:g} s.")
            self._watch = self.loop.call_later(self.few, self._look)
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        """Answer, and read on: closed with bytes unread, the answer would be lost on its way."""
        self.refused, self.since = True, self.loop.time()
        body = bytes(error_response(status, message).body)
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
        self.transport.write_eof()
