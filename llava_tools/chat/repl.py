"""The prompt of `llava-tools chat MODEL`: questions line by line, answers as they come.

In a terminal it has line editing and a history. In a pipe it reads the same input, writes the
answers alone to stdout, and stops at the first error.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console

from llava_tools.chat.session import Session
from llava_tools.chat.start import open_pictures
from llava_tools.errors import UserError, did_you_mean

FENCE = '"""'  # before and after a text of several lines
XTUNER = {"RESET": "/reset", "EXIT": "/quit"}  # its words for these commands
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def run_repl(
    session: Session,
    images: Sequence[str] = (),
    *,
    stdin: TextIO | None = None,
    stdout: TextIO | None = None,
    stderr: TextIO | None = None,
) -> None:
    """Talk until /quit or the end of the input; `images` are files shown with the first question.

    Raises UserError: an image that cannot be opened and, unless a person is at the keyboard, any
    wrong command or question.
    """
    Repl(session, stdin or sys.stdin, stdout or sys.stdout, stderr or sys.stderr).run(images)


@dataclass(frozen=True)
class Command:
    """What a line that starts with `/` does with the rest of it."""

    usage: str
    run: Callable[[Repl, str], None]


class Repl:
    """Reads questions and commands from `stdin` until the end."""

    def __init__(self, session: Session, stdin: TextIO, stdout: TextIO, stderr: TextIO) -> None:
        self.session = session
        self.stdin, self.stdout = stdin, stdout
        self.interactive = stdin.isatty()
        self.notes = Console(file=stderr, highlight=False, markup=False, soft_wrap=True)
        self.done = False

    def run(self, images: Sequence[str] = ()) -> None:
        """Answer until the end of the input."""
        if images:
            self.session.show(open_pictures(images))
        if self.interactive:
            _edit_lines()
            assistant = self.session.assistant
            self.note(f"{assistant.path} · {assistant.format} · {assistant.template.name}")
            self.note("A line is a question; /help lists what else there is.")
        while not self.done:
            try:
                text = self.read()
                if text is None:
                    break
                self.handle(text)
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                self.note("\nCtrl-D or /quit leaves.")
            except UserError as error:
                if not self.interactive:
                    raise
                self.note(str(error))

    def handle(self, text: str) -> None:
        """Run one command or answer one question."""
        word, _, rest = XTUNER.get(text, text).partition(" ")
        if not re.fullmatch("/[a-z]+", word):
            self.answer(text)
        elif word in COMMANDS:
            COMMANDS[word].run(self, rest.strip())
        else:
            raise UserError(f"There is no command {word}.", did_you_mean(word, COMMANDS))

    def answer(self, text: str) -> None:
        """Stream one answer to stdout. Ctrl-C ends the answer, not the conversation."""
        try:
            with closing(self.session.ask(text)) as pieces:
                for piece in pieces:
                    self.write(piece)
        except KeyboardInterrupt:
            self.write("\n")
            if not self.interactive:
                raise
            self.note("(stopped)")
            return
        self.write("\n")
        if self.session.last is not None and self.session.last.finish == "length":
            self.note(f"(cut after {len(self.session.last.token_ids)} tokens)")

    def read(self) -> str | None:
        """Return the next question or command, None at the end of the input."""
        while (line := self.read_line("> ")) is not None and not line.strip():
            pass
        if line is None or not line.startswith(FENCE):
            return line if line is None else line.strip()
        lines = [line[len(FENCE) :]]
        while not lines[-1].rstrip().endswith(FENCE):
            more = self.read_line(". ")
            if more is None:
                raise UserError(f"The text opened with {FENCE} has no end.", f"Close it: {FENCE}")
            lines.append(more)
        return "\n".join(lines).rstrip().removesuffix(FENCE).strip()

    def read_line(self, prompt: str) -> str | None:
        """Return one line without its end, None at the end of the input."""
        if self.interactive and self.stdout.isatty() and self.stdin is sys.stdin:
            with suppress(EOFError):
                return input(prompt)
            self.write("\n")
            return None
        if self.interactive:
            self.notes.print(prompt, end="")
        try:
            line = self.stdin.readline()
        except UnicodeDecodeError as error:
            raise UserError(f"The input is not UTF-8 text: {error}", "Convert it first.") from error
        return line.rstrip("\r\n") if line else None

    def write(self, text: str) -> None:
        """Write to stdout at once. A terminal gets no control characters from the model."""
        self.stdout.write(text.translate(_CONTROLS) if self.stdout.isatty() else text)
        self.stdout.flush()

    def note(self, text: str) -> None:
        """Tell the person at the keyboard something that is no answer."""
        self.notes.print(text, style="dim")


def _show(repl: Repl, files: str) -> None:
    try:
        paths = shlex.split(files)
    except ValueError as error:
        raise UserError(
            f"/image {files}: {error}.", "Quote names with spaces: 'a b.png'"
        ) from error
    repl.session.show(open_pictures(paths))
    repl.note(f"New conversation about {', '.join(paths) or 'no image'}.")


def _reset(repl: Repl, rest: str) -> None:
    repl.session.reset()
    repl.note("New conversation.")


def _system(repl: Repl, text: str) -> None:
    repl.session.system = text or None
    repl.session.reset()
    repl.note(f"New conversation, {'with' if text else 'without'} a system text.")


def _help(repl: Repl, rest: str) -> None:
    for command in COMMANDS.values():
        repl.note(command.usage)
    repl.note(f"{FENCE:<16} begins a text of several lines, and {FENCE} ends it")
    repl.note(f"{'Ctrl-C':<16} stops an answer; Ctrl-D leaves")


def _quit(repl: Repl, rest: str) -> None:
    repl.done = True


COMMANDS = {
    "/image": Command("/image FILE ...  a new conversation about these images", _show),
    "/reset": Command("/reset           a new conversation about the same image (RESET)", _reset),
    "/system": Command("/system TEXT     a new conversation under this system text", _system),
    "/help": Command("/help            this list", _help),
    "/quit": Command("/quit            leave (EXIT)", _quit),
}


def _edit_lines() -> None:
    """Give input() a history and editing keys, where Python was built with them."""
    with suppress(ImportError):
        import readline  # noqa: F401
