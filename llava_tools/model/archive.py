"""Where the bytes of a PyTorch checkpoint lie: a zip archive that compresses nothing."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from llava_tools.errors import UserError
from llava_tools.model.file_bytes import FileBytes


def damaged(path: Path, why: str) -> UserError:
    """Return the error for a file that cannot be read as a checkpoint."""
    return UserError(
        f"'{path}' is damaged or no PyTorch checkpoint ({why.splitlines()[0][:200]}).",
        "Copy it again, and compare its size with the original's.",
    )


class Entries:
    """Where the tensors' bytes lie in a checkpoint's zip archive."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self.bytes = FileBytes(path)
        listed = archive.infolist()
        self.entries = {entry.filename: entry for entry in listed}
        if len(self.entries) != len(listed):
            raise damaged(path, "it holds two records of one name")
        found = [name for name in self.entries if name.split("/")[1:] == ["data.pkl"]]
        if len(found) != 1:
            raise UserError(
                f"'{path}' is a zip archive, but no PyTorch checkpoint (no data.pkl in it).",
                "Give a .pth, .bin or .pt file that torch.save wrote.",
            )
        self.root = found[0].removesuffix("data.pkl")
        held = self.root + "byteorder" in self.entries
        if held and self._content("byteorder") != b"little":
            raise UserError(
                f"'{path}' was written on a big-endian machine.", "Save it again on this one."
            )
        self.pickle = self._content("data.pkl")

    def _stored(self, name: str) -> zipfile.ZipInfo:
        entry = self.entries.get(self.root + name)
        if entry is None:
            raise damaged(self.path, f"it lacks the record {name}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise damaged(self.path, f"its record {name} is compressed or encrypted")
        return entry

    def _content(self, name: str) -> bytes:
        """Return a small record whole; its checksum is compared where one was saved."""
        found, wanted = self.bytes.read(*self._span(name)).numpy().tobytes(), self._stored(name).CRC
        if wanted and zlib.crc32(found) != wanted:
            raise damaged(self.path, f"its record {name} has changed since it was saved")
        return found

    def _span(self, name: str) -> tuple[int, int]:
        entry = self._stored(name)
        start = entry.header_offset
        there = start + 30 <= self.bytes.size
        header = self.bytes.read(start, 30).numpy().tobytes() if there else b""
        if header[:4] != b"PK\x03\x04":
            raise damaged(self.path, f"no header before the record {name}")
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        offset = start + 30 + lengths
        if offset + entry.file_size > self.bytes.size:
            raise damaged(self.path, f"it ends within the record {name}")
        return offset, entry.file_size

    def span(self, key: str) -> tuple[int, int]:
        """Return offset and size in bytes of storage `key` in the file."""
        return self._span(f"data/{key}")

    def crc(self, key: str) -> int:
        """Return the CRC-32 that was saved with storage `key`, 0 for none."""
        return self._stored(f"data/{key}").CRC
