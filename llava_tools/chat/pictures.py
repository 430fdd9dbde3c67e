"""Images as people give them: files, addresses, names dropped into a terminal."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image

from llava_tools.data.addresses import Allowance, fetch_bytes
from llava_tools.data.images import decode_image, open_image
from llava_tools.data.paths import MAX_BYTES
from llava_tools.errors import UserError

ADDRESS = re.compile("https?://", re.IGNORECASE)
FETCH_SECONDS = 120.0  # for the whole image
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2")
# A name at the start of a line: quoted, or with spaces escaped as terminals drop it.
_WORD = re.compile(r"""\s*('[^']+'|"[^"]+"|(?:\\.|\S)+)""")


@dataclass(frozen=True, eq=False)
class Picture:
    """An image of a conversation: `digest` tells it from others, `source` is where it came from.

    `data` are the bytes of one that came from an address, where it may be gone tomorrow.
    """

    image: Image.Image
    digest: str  # SHA-256 of the file; of the pixels where there was no file
    source: str | None = None
    data: bytes | None = None


def as_picture(image: Picture | Image.Image) -> Picture:
    """Return an image as a picture, known by its pixels."""
    if isinstance(image, Picture):
        return image
    size = f"{image.mode} {image.size}".encode()
    return Picture(image, hashlib.sha256(size + image.tobytes()).hexdigest())


def read_picture(source: str) -> Picture:
    """Read an image file or fetch an image that the user named by its address.

    Raises UserError: a file that is missing or no image, an address where there is none.
    """
    if ADDRESS.match(source):
        data = fetch_bytes(source, "yours", Allowance(MAX_BYTES, FETCH_SECONDS), private=True)
        image = decode_image(data, f"What lies at '{source:.80}'")
        return Picture(image, hashlib.sha256(data).hexdigest(), source, data)
    path = as_path(source)
    image = open_image(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Picture(image, digest, str(path.resolve()))


def read_pictures(sources: Sequence[str]) -> list[Picture]:
    """Read several images. Raises UserError as `read_picture` does."""
    return [read_picture(source) for source in sources]


def as_path(source: str) -> Path:
    """Return the path of a file by its name, which may begin with `~` or `file://`."""
    if source.startswith("file://"):
        source = unquote(urlsplit(source).path)
    try:
        return Path(source).expanduser()
    except RuntimeError as error:  # ~nobody/a.png
        raise UserError(f"'{source}': {error}", "Give the whole path.") from error


def split_pictures(text: str) -> tuple[list[str], str]:
    """Return the image files and addresses that a text begins with, and the text after them.

    Only what ends like an image counts, and of files only those that exist: anything else is text.
    """
    found: list[str] = []
    while match := _WORD.match(text):
        word = match[1]
        quoted = word[0] in "'\"" and word[-1] == word[0] and len(word) > 2
        name = word[1:-1] if quoted else re.sub(r"\\(.)", r"\1", word)
        if not _is_picture(name):
            break
        found.append(name)
        text = text[match.end() :]
    return found, text.strip()


def _is_picture(name: str) -> bool:
    if ADDRESS.match(name):
        return urlsplit(name).path.lower().endswith(SUFFIXES)
    try:
        return name.lower().endswith(SUFFIXES) and as_path(name).is_file()
    except (OSError, UserError, ValueError):  # too long for a name, no such user, a null byte
        return False
