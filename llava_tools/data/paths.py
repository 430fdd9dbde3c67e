"""Where an image named by a data row may lie: inside its folder, by its real path."""

from __future__ import annotations

import os
import stat
from functools import lru_cache

from llava_tools.errors import UserError

MAX_BYTES = 128 * 2**20


class OutsideFolder(UserError):
    """An image path that leaves its folder."""


class MissingImage(UserError):
    """An image file that is not there."""


def locate(path: str, folder: str = "", *, follow_links: bool = False) -> str:
    """Return the path of an image file that exists, lies inside `folder` and is not too large.

    Without a folder any path is right. With one, a row can reach nothing outside it, neither by
    `..` or an absolute path nor through a symbolic link; `follow_links` admits links, which
    published data trees consist of, but no other way out.

    Raises OutsideFolder, MissingImage, or UserError for a folder or a file above MAX_BYTES.
    """
    full = os.path.join(folder, path)
    if folder:
        root = _real(_absolute(folder))
        # After a link, `..` leads to the parent of the link's target: never taken by its spelling.
        as_spelled = follow_links and os.pardir not in path.split(os.sep)
        where = os.path.normpath(os.path.join(root, path)) if as_spelled else _real_file(full)
        if os.path.commonpath([root, where]) != root or where == root:
            raise OutsideFolder(
                f"'{path}' lies outside the image folder '{folder}'.",
                "Rows may only name images inside image_folder. If the folder holds links to other "
                "folders of yours, set `follow_links=True` for this dataset.",
            )
    _check_file(full)
    return full


def _real_file(full: str) -> str:
    """`os.path.realpath`, with the resolved folder kept: rows of a file share few folders."""
    folder, name = os.path.split(full)
    resolved = os.path.join(_real(_absolute(folder)), name)
    special = name in ("", os.curdir, os.pardir) or os.path.islink(resolved)
    return os.path.realpath(resolved) if special else resolved


def _absolute(folder: str) -> str:
    return os.path.join(os.getcwd(), folder)  # abspath would undo `link/..` by its spelling


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def _check_file(full: str) -> None:
    try:
        found = os.stat(full)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MissingImage(
            f"The image '{full}' cannot be read: {reason}.",
            "Check the path, and image_folder if a data row names it.",
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"'{full}' is not an image file.", "Name a file, not a folder.")
    if found.st_size > MAX_BYTES:
        raise UserError(
            f"The image '{full}' has {found.st_size:,} bytes; the limit is {MAX_BYTES:,}.",
            "Shrink the image.",
        )
