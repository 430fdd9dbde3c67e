"""Where the bytes of a PyTorch checkpoint lie: a zip archive that compresses nothing."""

from __future__ import annotations

import zipfile
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
        self.size = path.stat().st_size
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
        if held and archive.read(self._stored("byteorder")) != b"little":
            raise UserError(
                f"'{path}' was written on a big-endian machine.", "Save it again on this one."
            )
        self.pickle = self._stored("data.pkl")
        self.bytes = FileBytes(path)

    def _stored(self, name: str) -> zipfile.ZipInfo:
        entry = self.entries.get(self.root + name)
        if entry is None:
            raise damaged(self.path, f"it lacks the record {name}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise damaged(self.path, f"its record {name} is compressed or encrypted")
        return entry

    def span(self, key: str) -> tuple[int, int]:
        """Return offset and size in bytes of storage `key` in the file."""
        entry = self._stored(f"data/{key}")
        with self.path.open("rb") as file:
            file.seek(entry.header_offset)
            header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise damaged(self.path, f"no header before the record data/{key}")
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        offset = entry.header_offset + 30 + lengths
        if offset + entry.file_size > self.size:
            raise damaged(self.path, f"it ends within the record data/{key}")
        return offset, entry.file_size

    def crc(self, key: str) -> int:
        """Return the CRC-32 that was saved with storage `key`, 0 for none."""
        return self._stored(f"data/{key}").CRC
