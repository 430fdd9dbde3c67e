"""`llava-tools generate`: the answers to a file of prompts, many at once, each as if alone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from llava_tools.chat.answers import Answer, AnswerFile
from llava_tools.chat.engine import Engine, Job, Progress
from llava_tools.chat.prompts import Prompt, read_prompts
from llava_tools.chat.start import open_pictures
from llava_tools.constants import IMAGE_TOKEN_ID
from llava_tools.data.progress import watched
from llava_tools.data.render import render_prompt
from llava_tools.errors import UserError
from llava_tools.model.generate import GenerationSettings, check_prompt
from llava_tools.model.identity import dtype_name, weights_digest
from llava_tools.model.load import Assistant


@dataclass(frozen=True)
class Answered:
    """An answer as progress counts it."""

    answer: Answer
    seen: int = 1
    bytes_read: int = 1


@dataclass(frozen=True)
class _Task:
    prompt: Prompt
    ids: list[int]
    places: int  # of the prompt in the model's context


def generate_file(
    load: Callable[[], Assistant],
    prompts: str | Path,
    out: str | Path,
    settings: GenerationSettings,
    *,
    batch_size: int = 8,
    image_folder: str = "",
    system: str | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Answer every row of `prompts` that `out` has no answer to; return a summary.

    `load` opens the model, after the rows and the output were checked; `made_by` says which one.
    Every row draws from a seed of its own, so answers depend on no other row.

    Raises UserError: a row that cannot be asked, an output of other settings, a full disk.
    """
    begin = time.monotonic()
    rows = read_prompts(prompts, image_folder, system)
    recorded = {
        **(made_by or {}),
        "prompts": hashlib.sha256(Path(prompts).read_bytes()).hexdigest()[:16],
        "system": system,
        "image_folder": image_folder,
        **asdict(settings),
    }
    before = 0
    with AnswerFile(Path(out).expanduser(), recorded, len(rows)) as file:
        before = len(file.done)
        todo = [prompt for prompt in rows if prompt.row not in file.done]
        if todo:
            assistant = load()
            file.note(_identity(assistant))
            for answered in watched(
                _answers(assistant, todo, settings, batch_size), str(prompts), len(todo)
            ):
                file.append(answered.answer)
        file.finish()
        answers = list(file.done.values())
    return _summary(answers, before, str(out), time.monotonic() - begin)


def _identity(assistant: Assistant) -> dict[str, Any]:
    return {
        "prompt_template": assistant.template.name,
        "dtype_used": dtype_name(assistant.model),
        "weights": weights_digest(assistant.model),
    }


def _summary(answers: Sequence[Answer], before: int, out: str, seconds: float) -> dict[str, Any]:
    new = answers[before:]
    return {
        "out": out,
        "rows": len(answers),
        "kept": before,
        "answered": len(new),
        "failed": sum(answer["answer"] is None for answer in answers),
        "cut": sum(answer["finish"] == "length" for answer in answers),
        "tokens": sum(answer["tokens"] for answer in new),
        "seconds": round(seconds, 2),
    }


def _answers(
    assistant: Assistant, prompts: Sequence[Prompt], settings: GenerationSettings, batch_size: int
) -> Iterator[Answered]:
    """Yield the answers as they come, the longest prompts' first: rows of a kind go together."""
    tasks: list[_Task] = []
    for prompt in prompts:
        try:
            tasks.append(_task(assistant, prompt))
        except UserError as error:
            yield Answered(_refused(prompt, error.message))
    tasks.sort(key=lambda task: -task.places)
    engine = Engine(assistant, batch_size, max_waiting=2 * batch_size)
    try:
        yield from _through(engine, assistant, tasks, settings, 2 * batch_size)
    finally:
        engine.close()


def _task(assistant: Assistant, prompt: Prompt) -> _Task:
    """Render a prompt. Raises UserError where the model cannot read it."""
    if prompt.images and assistant.image_processor is None:
        assistant.pixels([])
    ids = render_prompt(prompt.turns, assistant.template, assistant.tokenizer)
    check_prompt(ids)
    places = len(ids) + ids.count(IMAGE_TOKEN_ID) * (assistant.model.num_patches - 1)
    reach = _reach(assistant)
    if reach is not None and places >= reach:
        raise UserError(f"The prompt is {places} tokens long; this model reads {reach}.")
    return _Task(prompt, ids, places)


def _reach(assistant: Assistant) -> int | None:
    found = getattr(assistant.model.llm.config, "max_position_embeddings", None)
    return int(found) if found is not None else None


def _through(
    engine: Engine,
    assistant: Assistant,
    tasks: Sequence[_Task],
    settings: GenerationSettings,
    ahead: int,
) -> Iterator[Answered]:
    """Send tasks through the engine, no more than `ahead` at once, and yield what comes back."""
    told: SimpleQueue[Answered] = SimpleQueue()
    waiting = iter(tasks)
    under_way = 0
    while True:
        while under_way < ahead and (task := next(waiting, None)) is not None:
            try:
                engine.submit(_job(assistant, task, settings, told))
                under_way += 1
            except UserError as error:
                yield Answered(_refused(task.prompt, error.message))
        if not under_way:
            return
        yield told.get()
        under_way -= 1


def _job(
    assistant: Assistant,
    task: _Task,
    settings: GenerationSettings,
    told: SimpleQueue[Answered],
) -> Job:
    pictures = open_pictures(task.prompt.images)
    pixels = assistant.pixels(pictures) if pictures else None
    reach = _reach(assistant)
    room = settings.max_new_tokens if reach is None else reach - task.places
    own = replace(
        settings,
        seed=settings.seed + task.prompt.row,
        max_new_tokens=min(settings.max_new_tokens, room),
    )
    pieces: list[str] = []

    def tell(progress: Progress) -> None:
        pieces.append(progress.text)
        if progress.finish in ("stop", "length"):
            told.put(Answered(_answer(task.prompt, "".join(pieces), progress)))
        elif progress.finish is not None:
            told.put(Answered(_refused(task.prompt, progress.error or progress.finish)))

    return Job(task.ids, own, tell, pixels)


def _answer(prompt: Prompt, text: str, progress: Progress) -> Answer:
    head = {"row": prompt.row, "id": prompt.id, "answer": text.strip()}
    return head | {"finish": progress.finish, "tokens": progress.tokens}


def _refused(prompt: Prompt, reason: str) -> Answer:
    head = {"row": prompt.row, "id": prompt.id, "answer": None}
    return head | {"finish": "failed", "tokens": 0, "error": reason}
