"""A file of answers that grows as they come, from which a killed run goes on.

One object a line, in the order in which answers came; `finish` puts them in that of the prompts.
What made them lies beside, in OUT.settings.json, written before the first answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import orjson

from llava_tools.errors import UserError, changes
from llava_tools.locks import hold
from llava_tools.whole_files import write_whole

Answer = dict[str, Any]  # row, id, answer, finish, tokens; error
KEYS = {"row", "id", "answer", "finish", "tokens"}

WAIT = "Wait for it, or give another OUT."


class AnswerFile:
    """OUT.jsonl, opened for appending; `done` has what an earlier run left, by row.

    `rows` is how many prompts there are. A last line that a kill cut short is dropped. Raises
    UserError for a file that other settings made, that is none of ours, or that another process is
    writing.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], rows: int) -> None:
        self.path, self.beside, self.rows = path, path.with_name(path.name + ".settings.json"), rows
        self.done: dict[int, Answer] = {}
        wanted = orjson.loads(orjson.dumps(dict(settings)))
        self._check(wanted)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = path.open("ab")
        except OSError as error:
            raise UserError(
                f"Cannot write '{path}': {error.strerror}.", "Choose another place."
            ) from error
        try:
            hold(self._file, path, UserError(f"Another process is writing '{path}'.", WAIT))
            end = self._read()
            _write(self.beside, orjson.dumps(self.settings | wanted, option=orjson.OPT_INDENT_2))
            self._file.truncate(end)
        except UserError:
            self._file.close()
            raise

    def _check(self, wanted: dict[str, Any]) -> None:
        self.settings: dict[str, Any] = {}
        full = self.path.is_file() and self.path.stat().st_size > 0
        if not self.beside.is_file():
            if full:
                raise UserError(
                    f"'{self.path}' is there, and holds no answers of this command.",
                    "Give another OUT; nothing was changed.",
                )
            return
        if not full:
            return
        try:
            self.settings = dict(orjson.loads(self.beside.read_bytes()))
        except (orjson.JSONDecodeError, TypeError, ValueError) as error:
            raise UserError(
                f"'{self.beside}' is damaged: what made '{self.path}' is unknown.",
                "Give another OUT, or delete both files to start over.",
            ) from error
        self.check(wanted)

    def check(self, wanted: Mapping[str, Any]) -> None:
        """Compare settings with those that made what is there. Raises UserError naming them."""
        known = {key: value for key, value in wanted.items() if key in self.settings}
        if different := changes(self.settings, known):
            raise UserError(
                f"'{self.path}' holds the answers of another run: {different}.",
                "Give another OUT, or delete that file to start over.",
            )

    def note(self, more: Mapping[str, Any]) -> None:
        """Check and keep what is known of the model only once it is loaded. Raises UserError."""
        self.check(more)
        saved = orjson.loads(self.beside.read_bytes())
        _write(self.beside, orjson.dumps(saved | dict(more), option=orjson.OPT_INDENT_2))

    def _read(self) -> int:
        """Take over the whole lines; return where the last one ends."""
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    answer = orjson.loads(line)
                except orjson.JSONDecodeError:
                    answer = None
                if not self._is_answer(answer):
                    raise UserError(
                        f"'{self.path}', line {number} is no answer of this command.",
                        "Mend or delete that line, or give another OUT.",
                    )
                self.done[answer["row"]] = answer
                end += len(line)
        return end

    def _is_answer(self, value: Any) -> bool:
        if not isinstance(value, dict) or not value.keys() >= KEYS:
            return False
        return type(value["row"]) is int and 0 <= value["row"] < self.rows

    def append(self, answer: Answer) -> None:
        """Write an answer and flush it, so that a kill loses nothing."""
        try:
            self._file.write(orjson.dumps(answer) + b"\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"Could not write '{self.path}': {error.strerror}.",
                "Make room and run the same command again: it goes on where it stopped.",
            ) from error
        self.done[answer["row"]] = answer

    def finish(self) -> None:
        """Put the answers into the order of their prompts."""
        ordered = [self.done[row] for row in sorted(self.done)]
        _write(self.path, b"".join(orjson.dumps(answer) + b"\n" for answer in ordered))

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def _write(path: Path, content: bytes) -> None:
    write_whole(path, content, "Make room, and run it again.")
