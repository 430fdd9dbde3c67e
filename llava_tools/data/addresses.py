"""Images by address: what a client of a server or a saved file names never lies inside its network.

The name is resolved once, every address it has must be public, and the connection goes to an
address that was checked: a name that changes its mind in between (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import ssl
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from time import monotonic
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from PIL import Image

from llava_tools.data.images import decode_image
from llava_tools.data.timed_sockets import TimedSocket, connect, find, seconds_left
from llava_tools.errors import UserError

MAX_REDIRECTS = 3
PORTS = {"http": 80, "https": 443}
AS_THEY_ARE = "/%:@!$&'()*+,;=~?"  # in a path or a query; anything else is escaped


@dataclass
class Allowance:
    """What may be fetched together: so many bytes, and so many seconds from the first on."""

    max_bytes: int
    seconds: float
    _end: float | None = field(default=None, init=False)

    def end(self) -> float:
        """Return when everything must be here, by the monotonic clock."""
        self._end = self._end or monotonic() + self.seconds
        return self._end


def fetch_image(url: str, where: str, allowed: Allowance) -> Image.Image:
    """Return the image at a public address.

    Raises UserError as `fetch_bytes` does, and for what is no image.
    """
    return decode_image(fetch_bytes(url, where, allowed), f"The image of {where}")


def fetch_bytes(url: str, where: str, allowed: Allowance, *, private: bool = False) -> bytes:
    """Return what lies at an address, and take its bytes from what is allowed.

    With `private`, for what users type themselves, the address may lie in their own network; a
    redirect never leads there.

    Raises UserError: no http(s), a private address, too many redirects, not there, too large, not
    here in time.
    """
    for hop in range(MAX_REDIRECTS + 1):
        try:
            response, connection = _ask(url, allowed.end(), private and hop == 0)
            with closing(connection), response:
                location = response.headers.get("Location")
                if response.status in (301, 302, 303, 307, 308) and location:
                    url = urljoin(url, location)
                    continue
                if response.status != 200:
                    raise ValueError(f"the server answers {response.status}")
                return _body(response, allowed)
        except (OSError, ValueError, HTTPException) as error:
            raise _failed(url, where, _reason(error, allowed)) from error
    raise _failed(url, where, f"more than {MAX_REDIRECTS} redirects")


def _body(response: HTTPResponse, allowed: Allowance) -> bytes:
    data = response.read(allowed.max_bytes + 1)
    if len(data) > allowed.max_bytes:
        raise ValueError(f"more than {allowed.max_bytes:,} bytes")
    allowed.max_bytes -= len(data)
    return data


def _reason(error: Exception, allowed: Allowance) -> str:
    if isinstance(error, TimeoutError) and monotonic() >= allowed.end():
        return f"timed out after {allowed.seconds:g} s"
    return str(error) or type(error).__name__


def _ask(url: str, end: float, private: bool) -> tuple[HTTPResponse, TimedSocket]:
    """Return the head of an answer, and the connection that its body comes through."""
    parts = urlsplit(url)
    if parts.scheme not in PORTS or not parts.hostname:
        raise ValueError("only http and https addresses are fetched")
    connection = _connection(parts, end, private)
    try:
        path = quote(parts.path or "/", safe=AS_THEY_ARE)
        query = f"?{quote(parts.query, safe=AS_THEY_ARE)}" if parts.query else ""
        asking = HTTPConnection(parts.hostname)
        asking.sock = connection
        headers = {"Host": _named(parts), "Accept": "image/*", "Connection": "close"}
        asking.request("GET", path + query, headers=headers)
        return asking.getresponse(), connection
    except BaseException:
        connection.close()
        raise


def _named(parts: SplitResult) -> str:
    """Return the host as a request names it: without a user's name and password."""
    host = (parts.hostname or "").encode("idna").decode()
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{parts.port}" if parts.port else host


def _connection(parts: SplitResult, end: float, private: bool) -> TimedSocket:
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    addresses = find(host, port, end, anywhere=private)
    plain = connect(addresses, port, end)
    if parts.scheme == "http":
        return TimedSocket(plain, end)
    try:
        plain.settimeout(seconds_left(end))
        context = ssl.create_default_context()
        return TimedSocket(context.wrap_socket(plain, server_hostname=host), end)
    except BaseException:
        plain.close()
        raise


def _failed(url: str, where: str, problem: str) -> UserError:
    return UserError(
        f"The image of {where} at '{url:.80}' cannot be fetched: {problem}.",
        "Give the image itself: a file, or to a server data:image/png;base64,...",
    )
