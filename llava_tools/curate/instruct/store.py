"""The folder of one self-instruct project: what was asked, answered and decided, line by line.

Lines are appended and flushed as they come, so that a kill costs at most the last one; a stage
goes on behind them. `settings.json` says what made each stage's lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import orjson

from llava_tools.errors import UserError, changes
from llava_tools.locks import hold
from llava_tools.whole_files import write_whole

Record = dict[str, Any]
SETTINGS, LOCK = "settings.json", ".lock"
KIND = "llava-tools curate self-instruct"

# What the stages look for in the lines of a file; one without is damaged.
NEEDED = {
    "rounds.jsonl": ("accepted",),
    "machine_generated_instructions.jsonl": ("instruction", "most_similar", "request_idx"),
    "regen.jsonl": ("instruction", "input", "output"),
    "is_clf_or_not.jsonl": ("row", "instruction", "is_classification"),
    "machine_generated_instances.jsonl": ("row", "instruction", "raw_instances"),
    "image_questions.jsonl": ("image", "questions"),
    "image_answers.jsonl": ("image", "question", "answer", "finish_reason"),
    "quality.jsonl": ("key", "grade"),
}


class Log:
    """A JSONL file that grows; `rows` are its whole lines.

    A last line that a kill cut short is dropped. Raises UserError for damaged lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows, end = _read(path)
        self._ends = end
        try:
            self._file: BinaryIO = path.open("ab")
            self._file.truncate(end[-1] if end else 0)
        except OSError as error:
            raise _unwritable(path, error) from error

    def append(self, rows: Iterable[Record]) -> None:
        """Write rows and flush them, so that a kill loses nothing."""
        try:
            for row in rows:
                line = orjson.dumps(row) + b"\n"
                self._file.write(line)
                self.rows.append(row)
                self._ends.append((self._ends[-1] if self._ends else 0) + len(line))
            self._file.flush()
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def cut(self, count: int) -> None:
        """Keep the first `count` rows. Raises UserError where there are fewer."""
        if count > len(self.rows):
            raise UserError(
                f"'{self.path}' has {len(self.rows):,} rows, of {count:,} that were written.",
                "Put the file back, or give another WORK_DIR to start over.",
            )
        del self.rows[count:], self._ends[count:]
        self._file.truncate(self._ends[-1] if self._ends else 0)

    def sort(self, key: Callable[[Record], Any]) -> None:
        """Put the rows into an order that does not depend on who answered first."""
        ordered = sorted(self.rows, key=key)
        if ordered == self.rows:
            return
        lines = [orjson.dumps(row) + b"\n" for row in ordered]
        self._file.close()
        write_whole(self.path, b"".join(lines))
        self._file = self.path.open("ab")
        self.rows, self._ends = ordered, list(accumulate(map(len, lines)))

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def _read(path: Path) -> tuple[list[Record], list[int]]:
    """Return the whole lines of a file and where each ends."""
    rows: list[Record] = []
    ends: list[int] = []
    data = path.read_bytes() if path.exists() else b""
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(keepends=True), 1):
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            row = None
        if not isinstance(row, dict) or not set(NEEDED.get(path.name, ())) <= set(row):
            raise UserError(
                f"'{path}', line {number}, is damaged.",
                "Mend the line, or give another WORK_DIR to start over.",
            )
        rows.append(row)
        ends.append((ends[-1] if ends else 0) + len(line))
    return rows, ends


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"Could not write '{path}': {error.strerror}.",
        "Make room and run the same command again: it goes on where it stopped.",
    )


class WorkDir:
    """The folder, for one process at a time.

    Raises UserError for a folder with other things in it, or that another process works in.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path / SETTINGS
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._settings = self._known()
            self._lock = (path / LOCK).open("ab")
        except OSError as error:
            raise _unwritable(path, error) from error
        hint = "Wait for it, or give another WORK_DIR."
        try:
            hold(self._lock, path, UserError(f"Another process is working in '{path}'.", hint))
        except UserError:
            self._lock.close()
            raise
        self._save()

    def _known(self) -> dict[str, Any]:
        if not self._file.is_file():
            if any(not entry.name.startswith(".") for entry in self.path.iterdir()):
                raise UserError(
                    f"'{self.path}' is not empty, and no folder of this command.",
                    "Give another WORK_DIR; nothing was changed.",
                )
            return {"kind": KIND, "stages": {}}
        try:
            settings = json.loads(self._file.read_bytes())
            if settings["kind"] == KIND and isinstance(settings["stages"], dict):
                return dict(settings)
        except (ValueError, KeyError, TypeError):
            pass
        raise UserError(
            f"'{self._file}' is damaged, or another tool's: what made '{self.path}' is unknown.",
            "Give another WORK_DIR.",
        )

    def bind(self, stage: str, wanted: Mapping[str, Any]) -> None:
        """Keep what makes a stage's lines. Raises UserError where it was something else before."""
        known = self._settings["stages"].setdefault(stage, dict(wanted))
        if different := changes(known, wanted):
            raise UserError(
                f"'{self.path}' holds the work of other settings ({stage}): {different}.",
                "Give another WORK_DIR, or the settings as they were.",
            )
        self._save()

    def _save(self) -> None:
        self.write(SETTINGS, json.dumps(self._settings, indent=2).encode())

    def log(self, name: str) -> Log:
        """Open a file of lines, new or not."""
        return Log(self.path / name)

    def rows(self, name: str) -> list[Record]:
        """Return the whole lines of a file; none where there is no file."""
        return _read(self.path / name)[0]

    def write(self, name: str, content: bytes) -> Path:
        """Write a file whole or not at all; return its path."""
        return write_whole(self.path / name, content)

    def close(self) -> None:
        """Let other processes work here."""
        self._lock.close()
