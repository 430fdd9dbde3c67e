"""The commands of the dialogue: one table of what a line that begins with `/` does.

To add a command, add a row. Completion and /help read the table, too.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llava_tools.chat import params, saved
from llava_tools.chat.pictures import as_path, read_pictures
from llava_tools.chat.terminal import files_like
from llava_tools.constants import IMAGE_TOKEN_ID
from llava_tools.data.render import render_prompt
from llava_tools.data.sample import Turn
from llava_tools.data.templates import TEMPLATES, template_to_ask
from llava_tools.errors import UserError

if TYPE_CHECKING:
    from llava_tools.chat.repl import Repl

XTUNER = {"RESET": "/reset", "EXIT": "/quit"}  # its words for these commands


def _nothing(word: str) -> Iterable[str]:
    return ()


@dataclass(frozen=True)
class Command:
    """What a line that starts with `/` does with the rest of it, and what may stand there."""

    arguments: str
    what: str
    run: Callable[[Repl, str], None]
    complete: Callable[[str], Iterable[str]] = _nothing


def _image(repl: Repl, text: str) -> None:
    try:
        sources = shlex.split(text)
    except ValueError as error:
        raise UserError(f"/image {text}: {error}.", "Quote names with spaces: 'a b.png'") from error
    if not sources:
        raise UserError("/image names no image.", "Give files or addresses: /image a.png b.png")
    show_images(repl, sources)


def show_images(repl: Repl, sources: list[str]) -> None:
    """Let the next question be about these files or addresses. Raises UserError."""
    repl.session.add(read_pictures(sources))
    repl.note(f"With the next question: {', '.join(sources)}.")


def _clear(repl: Repl, rest: str) -> None:
    repl.session.show([])
    repl.note("New conversation, without images.")


def _reset(repl: Repl, rest: str) -> None:
    repl.session.reset()
    count = len(repl.session.shown)
    repl.note(f"New conversation{f' about the same {count} image(s)' if count else ''}.")


def _system(repl: Repl, text: str) -> None:
    repl.session.system = text or None
    repl.session.reset()
    repl.note(f"New conversation, {'with' if text else 'without'} a system text.")


def _retry(repl: Repl, rest: str) -> None:
    session, settings = repl.session, repl.session.settings
    pieces = session.retry
    if settings.temperature > 0 and session.history:
        session.settings = replace(settings, seed=settings.seed + 1)
        repl.note(f"(seed {session.settings.seed})")
    elif session.history:
        repl.note("(temperature 0: the same answer, unless settings changed)")
    repl.stream(pieces)


def _params(repl: Repl, text: str) -> None:
    repl.session.settings = params.change(repl.session.settings, text)
    repl.note(params.as_text(repl.session.settings))


def _template(repl: Repl, name: str) -> None:
    session = repl.session
    if name:
        template = template_to_ask(name, session.assistant.tokenizer)
        session.assistant = replace(session.assistant, template=template)
    assistant = session.assistant
    system = [Turn("system", session.system)] if session.system else []
    turns = [*system, Turn("user", "QUESTION")]
    ids = render_prompt(turns, assistant.template, assistant.tokenizer)
    text = assistant.tokenizer.decode([i for i in ids if i != IMAGE_TOKEN_ID])
    repl.note(f"{assistant.template.name}: {text!r} and then the answer")


def _save(repl: Repl, name: str) -> None:
    if not name and repl.file is None:
        raise UserError("/save names no file.", "For example: /save talk.json")
    known = repl.file is not None and (not name or _same(name, repl.file))
    repl.file = saved.save(repl.session, name or str(repl.file), replace_it=known)
    repl.note(f"Saved to {repl.file}.")


def _same(name: str, file: Path) -> bool:
    return as_path(name).absolute() == file


def _load(repl: Repl, name: str) -> None:
    if not name:
        raise UserError("/load names no file.", "For example: /load talk.json")
    repl.file = saved.load(repl.session, name)
    for exchange in repl.session.history:
        repl.note(f"> {exchange.question.text}\n{exchange.answer.text}")
    repl.note(f"Loaded {len(repl.session.history)} question(s) from {repl.file}.")


def _help(repl: Repl, rest: str) -> None:
    rows = [(f"{name} {c.arguments}", c.what) for name, c in COMMANDS.items()] + list(KEYS)
    for row in rows:
        repl.note(f"{row[0]:<24} {row[1]}")


def _quit(repl: Repl, rest: str) -> None:
    repl.done = True


KEYS = (
    ("a.png What is this?", "images in front of a question, dropped or typed"),
    ('"""', "begins a text of several lines, and the same ends it"),
    ("\\ at the end of a line", "the text goes on in the next one"),
    ("Ctrl-C", "stops an answer; Ctrl-D leaves"),
)
COMMANDS = {
    "/image": Command("FILE|URL ...", "the next question is about these, too", _image, files_like),
    "/clear": Command("", "a new conversation, without images", _clear),
    "/reset": Command("", "a new conversation about the first question's images (RESET)", _reset),
    "/system": Command("TEXT", "a new conversation under this system text, or none", _system),
    "/retry": Command("", "another answer to the last question (the next seed)", _retry),
    "/params": Command(
        "NAME=VALUE ...",
        "show or change how to answer",
        _params,
        lambda word: [f"{name}=" for name in params.NAMES if name.startswith(word)],
    ),
    "/template": Command(
        "NAME",
        "show or change the prompt's format",
        _template,
        lambda word: [name for name in TEMPLATES if name.startswith(word)],
    ),
    "/save": Command("FILE", "write the conversation to a file", _save, files_like),
    "/load": Command("FILE", "go on with a saved conversation", _load, files_like),
    "/help": Command("", "this list", _help),
    "/quit": Command("", "leave (EXIT)", _quit),
}


def complete(line: str, word: str) -> Iterable[str]:
    """Return what the last word of a line may become: a command, or an argument of one."""
    command = line.lstrip().split(" ")[0]
    if command == word and word.startswith("/"):
        return [f"{name} " for name in COMMANDS if name.startswith(word)] or files_like(word)
    return COMMANDS[command].complete(word) if command in COMMANDS else files_like(word)
