"""A conversation in a file: what /save writes and /load brings back.

Images stand there by path and SHA-256. One that came from an address is written beside the file,
so that loading reads files only: a file from somebody else makes us fetch nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llava_tools.chat.params import from_values
from llava_tools.chat.pictures import ADDRESS, Picture, as_path, read_picture
from llava_tools.chat.session import Exchange, Session
from llava_tools.constants import IMAGE_TOKEN
from llava_tools.data.sample import Turn
from llava_tools.data.templates import template_to_ask
from llava_tools.errors import UserError

FORMAT, VERSION = "llava-tools chat", 1
KEYS: dict[str, Any] = {
    "model": str,
    "template": str,
    "system": (str, type(None)),
    "settings": dict,
    "images": list,
    "shown": list,
    "waiting": list,
    "exchanges": list,
}


def save(session: Session, name: str, *, replace_it: bool = False) -> Path:
    """Write a conversation; return the file's path.

    Raises UserError: a file of that name (unless `replace_it`), a folder that cannot be written.
    """
    path = as_path(name).absolute()
    if path.exists() and not replace_it:
        raise UserError(f"'{path}' exists already.", "Choose another name, or move it away.")
    beside = path.with_name(path.name + ".part")
    try:
        data = json.dumps(_described(session, path), ensure_ascii=False, indent=1)
        beside.write_text(data + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error.strerror}.") from error
    return path


def _described(session: Session, path: Path) -> dict[str, Any]:
    said = [picture for exchange in session.history for picture in exchange.pictures]
    pictures = {p.digest: p for p in (*session.shown, *session.waiting, *said)}
    numbers = {digest: number for number, digest in enumerate(pictures)}

    def places(some: Sequence[Picture]) -> list[int]:
        return [numbers[picture.digest] for picture in some]

    return {
        "format": FORMAT,
        "version": VERSION,
        "model": str(session.assistant.path),
        "template": session.assistant.template.name,
        "system": session.system,
        "settings": asdict(session.settings),
        "images": [_image(picture, path) for picture in pictures.values()],
        "shown": places(session.shown),
        "waiting": places(session.waiting),
        "exchanges": [
            {"question": e.question.text, "images": places(e.pictures), "answer": e.answer.text}
            for e in session.history
        ],
    }


def _image(picture: Picture, path: Path) -> dict[str, str]:
    if picture.source is None:
        raise UserError("An image of this conversation is no file.", "Give images as files.")
    source = picture.source
    if picture.data is not None:
        file = path.with_name(f"{path.stem}-{picture.digest[:16]}.image")
        file.write_bytes(picture.data)
        source = str(file)
    return {"path": source, "sha256": picture.digest}


def load(session: Session, name: str) -> Path:
    """Go on with a saved conversation: turns, images, system text, template, settings.

    Raises UserError, and changes nothing: no such file, a broken or foreign one, an image that is
    gone or changed, a template or an image that this model cannot take.
    """
    path = as_path(name).absolute()
    saved = _checked(_read(path), path)
    settings = from_values(saved["settings"], f"'{path}'")
    pictures = [_picture(image, path) for image in saved["images"]]

    def chosen(places: Any) -> tuple[Picture, ...]:
        if not isinstance(places, list) or not all(
            type(place) is int and 0 <= place < len(pictures) for place in places
        ):
            raise _broken(path, f"{places!r:.40} names no images of it")
        return tuple(pictures[place] for place in places)

    history = [_exchange(said, chosen, path) for said in saved["exchanges"]]
    shown, waiting = chosen(saved["shown"]), chosen(saved["waiting"])
    assistant = session.assistant
    if saved["template"] != assistant.template.name:
        template = template_to_ask(saved["template"], assistant.tokenizer)
        assistant = replace(assistant, template=template)
    session.restore(history, shown, waiting)
    session.assistant, session.system, session.settings = assistant, saved["system"], settings
    return path


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise _broken(path, "it is no JSON") from error


def _checked(saved: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(saved, Mapping) or saved.get("format") != FORMAT:
        raise _broken(path, "it was written by something else")
    if saved.get("version") != VERSION:
        raise _broken(path, f"its version is {saved.get('version')!r:.20}, not {VERSION}")
    for key, kind in KEYS.items():
        if not isinstance(saved.get(key, ...), kind):
            raise _broken(path, f"'{key}' is missing or of a wrong kind")
    return saved


def _picture(image: Any, path: Path) -> Picture:
    if not isinstance(image, Mapping) or not all(
        isinstance(image.get(key), str) for key in ("path", "sha256")
    ):
        raise _broken(path, "an image in it has no path and sha256")
    if ADDRESS.match(image["path"]):
        raise _broken(path, "an image in it is an address")
    picture = read_picture(image["path"])
    if picture.digest != image["sha256"]:
        raise UserError(
            f"The image '{image['path']}' is not the one that was talked about in '{path}'.",
            "Put the old one back, or begin a new conversation.",
        )
    return picture


def _exchange(said: Any, chosen: Any, path: Path) -> Exchange:
    if not isinstance(said, Mapping) or not all(
        isinstance(said.get(key), str) for key in ("question", "answer")
    ):
        raise _broken(path, "an exchange in it has no question and answer")
    pictures = chosen(said.get("images"))
    if said["question"].count(IMAGE_TOKEN) != len(pictures) or IMAGE_TOKEN in said["answer"]:
        raise _broken(path, f"the {IMAGE_TOKEN} of an exchange are not its images")
    return Exchange(Turn("user", said["question"]), pictures, Turn("assistant", said["answer"]))


def _broken(path: Path, problem: str) -> UserError:
    return UserError(f"'{path}' is no saved conversation: {problem}.", "Give a file of /save.")
