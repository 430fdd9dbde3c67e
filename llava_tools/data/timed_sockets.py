"""Connections that must have done everything by one moment, to addresses that were looked at.

A timeout of a socket starts anew with every byte: who sends one a second holds a reader for ever.
"""

from __future__ import annotations

import io
import ipaddress
import socket
import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

# IPv6 that gateways turn into the IPv4 address in its last 32 bits (RFC 6052, RFC 4291), and that
# of a network's own gateway (RFC 8215).
TRANSLATED = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))
NEAR_TRANSLATED = ipaddress.IPv6Network("64:ff9b:1::/48")


def seconds_left(end: float) -> float:
    """Return the seconds until a moment of the monotonic clock. Raises TimeoutError after it."""
    left = end - monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def find(host: str, port: int, end: float, *, anywhere: bool = False) -> list[str]:
    """Return the addresses of a host, the preferred one first, by a moment.

    The system's search has a limit of its own, which cannot be set: a thread waits for it.

    Raises TimeoutError; OSError for an unknown name; ValueError where an address is not public,
    unless it may lie `anywhere`.
    """
    found: SimpleQueue[Any] = SimpleQueue()

    def look() -> None:
        try:
            found.put(addresses_of(host, port))
        except (OSError, ValueError) as error:
            found.put(error)

    threading.Thread(target=look, daemon=True).start()
    try:
        addresses = found.get(timeout=seconds_left(end))
    except Empty:
        raise TimeoutError("timed out") from None
    if isinstance(addresses, Exception):
        raise addresses
    if not anywhere and not all(map(is_public, addresses)):
        raise ValueError(f"{host} is inside a private network")
    return list(addresses)


def addresses_of(host: str, port: int) -> list[str]:
    """Return what the system says of a name: each address once, in its order."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def is_public(address: str) -> bool:
    """Whether an address can be reached from everywhere, also by the IPv4 address in it."""
    parsed = ipaddress.ip_address(address.split("%")[0])
    if isinstance(parsed, ipaddress.IPv4Address):
        return parsed.is_global and not parsed.is_multicast
    if any(parsed in network for network in TRANSLATED):
        return is_public(str(ipaddress.IPv4Address(int(parsed) % 2**32)))
    inner = parsed.ipv4_mapped or parsed.sixtofour
    outer = parsed.is_global and not parsed.is_multicast and parsed not in NEAR_TRANSLATED
    return is_public(str(inner)) if inner else outer


def connect(addresses: Sequence[str], port: int, end: float) -> socket.socket:
    """Connect to the first address that answers, each having its share of the time.

    Raises OSError as the last one does.
    """
    for number, address in enumerate(addresses):
        share = seconds_left(end) / (len(addresses) - number)
        try:
            return socket.create_connection((address, port), share)
        except OSError:
            if number == len(addresses) - 1:
                raise
    raise OSError("no address")


class TimedSocket:
    """A connected socket, as an HTTP client uses it, whose every wait ends at one moment."""

    def __init__(self, sock: socket.socket, end: float) -> None:
        self._sock, self._end = sock, end

    def sendall(self, data: Any) -> None:
        """Send everything. Raises TimeoutError."""
        self._sock.settimeout(seconds_left(self._end))
        self._sock.sendall(data)

    def makefile(self, mode: str = "rb") -> io.BufferedReader:
        """Return what reads from the socket, whose reads raise TimeoutError."""
        return io.BufferedReader(_Reader(self._sock, self._end))

    def close(self) -> None:
        """End the connection once its readers are closed, too."""
        self._sock.close()


class _Reader(io.RawIOBase):
    def __init__(self, sock: socket.socket, end: float) -> None:
        self._sock, self._end = sock, end
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(seconds_left(self._end))
        count: int | None = self._raw.readinto(buffer)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
