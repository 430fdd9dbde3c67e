"""Answers on disk as they come: `predictions.jsonl`, from which a killed run goes on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

import llava_tools
from llava_tools.errors import UserError, changes
from llava_tools.eval.benchmark import Question
from llava_tools.eval.pictures import Index
from llava_tools.eval.predictions import prompt_hash, read_header, read_jsonl, whole_lines
from llava_tools.eval.shares import Place, answer_files
from llava_tools.locks import hold

ALONE = Place()


@dataclass(frozen=True)
class Answer:
    """The model's raw text for one question, with the number of tokens it generated."""

    index: Index
    text: str
    tokens: int


class AnswerLog:
    """`predictions.jsonl`, to append to: a header line, then one line an answer.

    `read` what an earlier run left, then `open` it: nobody may open before everybody has read. The
    work dir is held until the log is left.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Mapping[str, Any],
        info: Mapping[str, Any],
        place: Place = ALONE,
    ) -> None:
        self.folder = folder
        self.place = place
        self.path = folder / place.file_name
        self.fingerprint = fingerprint
        self.info = info
        self.done: dict[Index, str] = {}
        self.end = 0
        self.held: list[int] = []  # descriptors

    def read(self) -> None:
        """Take over the answers that are there, also those of other processes.

        A last line that a kill cut short is dropped. Raises UserError when that run was another one
        (other data, model or settings), and when it is still going.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.place.rank == 0:
                self._hold(self.folder, os.O_RDONLY)
        except OSError as error:
            raise self._unwritable(error) from error
        for path in answer_files(self.folder):
            found = self._read(path, self.fingerprint)
            self.end = found if path == self.path else self.end

    def open(self) -> None:
        """Begin to write. Raises UserError where that is not possible."""
        try:
            self.file = self._hold(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.truncate(self.file, self.end)
        except OSError as error:
            raise self._unwritable(error) from error
        if self.end == 0:
            version = llava_tools.__version__
            header = {"llava_tools": version, "fingerprint": dict(self.fingerprint), **self.info}
            self._write([header])

    def _hold(self, path: Path, flags: int) -> int:
        """Open a file or folder that no other process holds. Raises UserError otherwise."""
        descriptor = os.open(path, flags, 0o666)
        self.held.append(descriptor)
        taken = UserError(
            f"Another evaluation is writing to '{path}'.",
            "Wait for it, stop it, or give another --work-dir.",
        )
        hold(descriptor, path, taken)
        return descriptor

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"Cannot write '{self.path}': {error.strerror}.", "Give another --work-dir."
        )

    def _read(self, path: Path, fingerprint: Mapping[str, Any]) -> int:
        """Take over the answers of a file and return where its last whole line ends."""
        lines, end = whole_lines(path)
        if lines:
            check_fingerprint(path, read_header(path, lines[0]), fingerprint)
            self.done |= read_jsonl(path, lines).answers
        return end

    def append(self, answers: Sequence[Answer], questions: Mapping[Index, Question]) -> None:
        """Write answers at once, so that nothing done is lost to a kill."""
        self._write(
            {
                "index": answer.index,
                "prediction": answer.text,
                "tokens": answer.tokens,
                "prompt": prompt_hash(questions[answer.index]),
                "images": [picture.key for picture in questions[answer.index].pictures],
            }
            for answer in answers
        )
        self.done |= {answer.index: answer.text for answer in answers}

    def _write(self, records: Iterable[Mapping[str, Any]]) -> None:
        data = b"".join(orjson.dumps(record) + b"\n" for record in records)
        try:
            while data:
                data = data[os.write(self.file, data) :]
        except OSError as error:
            raise UserError(
                f"Could not write '{self.path}': {error.strerror}.",
                "Make room and run the same command again: it goes on where it stopped.",
            ) from error

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for descriptor in self.held:
            os.close(descriptor)


def check_fingerprint(
    path: Path, header: Mapping[str, Any], fingerprint: Mapping[str, Any]
) -> None:
    """Compare the keys that both have. Raises UserError naming everything that differs."""
    before = header["fingerprint"]
    known = {key: value for key, value in fingerprint.items() if key in before}
    if different := changes(before, known):
        raise UserError(
            f"'{path}' holds the answers of another run: {different}.",
            "Give another --work-dir, or delete that file to start over.",
        )


def saved_header(folder: Path) -> Mapping[str, Any] | None:
    """Return the header of the answers in a work dir, None when there are none yet."""
    for path in answer_files(folder):
        if lines := whole_lines(path)[0]:
            return read_header(path, lines[0])
    return None
