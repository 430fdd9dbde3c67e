"""Sample answers during training, to see a model learn, and a broken template at once."""

from __future__ import annotations

import logging
from pathlib import Path

import orjson
import torch

from llava_tools.constants import IGNORE_ID, IMAGE_TOKEN
from llava_tools.data.images import open_image
from llava_tools.data.render import render_prompt
from llava_tools.data.sample import Turn
from llava_tools.data.templates import fit_template
from llava_tools.model.generate import GenerationSettings, answer_text, generate
from llava_tools.model.load import Assistant
from llava_tools.train.loop import Run

log = logging.getLogger(__name__)

SETTINGS = GenerationSettings(max_new_tokens=64)


def sample_answers(run: Run) -> None:
    """Answer the settings' evaluation questions, or the data's first one; append to samples.jsonl.

    The random stream may move on: every step seeds it anew. Where weights are cut over the ranks
    all of them answer, and the first one tells.
    """
    assistant = _assistant(run)
    model = run.engine.model
    model.eval()
    kind = torch.bfloat16 if run.settings.dtype == "bf16" else torch.float32
    try:
        with torch.autocast(run.engine.device.type, kind, enabled=kind is torch.bfloat16):
            for prompt, pixels, question in _questions(run, assistant):
                (ids,) = generate(assistant, [prompt], [pixels], SETTINGS)
                if run.engine.rank != 0:
                    continue
                answer = answer_text(assistant, ids)
                shown = " ".join(answer.split())
                log.info("iter %d  %s  ->  %s", run.iteration, question, shown)
                _append(run.work_dir / "samples.jsonl", run.iteration, question, answer)
    finally:
        model.train()


def _assistant(run: Run) -> Assistant:
    specs = run.settings.datasets
    return Assistant(
        run.engine.model,
        run.tokenizer,
        run.image_processor,
        fit_template(run.settings.prompt_template, run.tokenizer),
        any(spec.pad_image_to_square for spec in specs),
        run.work_dir,
        "training",
    )


def _questions(run: Run, assistant: Assistant) -> list[tuple[list[int], torch.Tensor | None, str]]:
    """Return (prompt ids, pixels, text to show) of each question."""
    inputs, images = run.settings.evaluation_inputs, run.settings.evaluation_images
    if not inputs:
        return [_first_row(run)]
    pictures = [open_image(path) for path in images] if run.image_processor else []
    found: list[tuple[list[int], torch.Tensor | None, str]] = []
    for text in inputs:
        for name, picture in zip(images, pictures, strict=True) if pictures else [("", None)]:
            head = f"{IMAGE_TOKEN}\n" if picture is not None else ""
            turns = [Turn("system", run.settings.system)] if run.settings.system else []
            turns.append(Turn("user", head + text))
            prompt = render_prompt(turns, assistant.template, run.tokenizer)
            pixels = assistant.pixels([picture]) if picture is not None else None
            found.append((prompt, pixels, f"{Path(name).name} {text}".strip()))
    return found


def _first_row(run: Run) -> tuple[list[int], torch.Tensor | None, str]:
    """Return the first training row that can be read, up to its first answer."""
    rows = (run.dataset[i] for i in range(len(run.dataset)))
    example = next((row for row in rows if row.skip is None), run.dataset[0])
    ids, labels = list(example.input_ids), list(example.labels)
    prompt = ids[: next((i for i, label in enumerate(labels) if label != IGNORE_ID), len(ids))]
    images = sum(1 for token in prompt if token < 0)
    text = run.tokenizer.decode([t for t in prompt if t >= 0], skip_special_tokens=True)
    return (
        prompt,
        example.pixels[:images] if images else None,
        f"row {example.row}: " + " ".join(text.split()),
    )


def _append(path: Path, iteration: int, question: str, answer: str) -> None:
    record = {"iter": iteration, "question": question, "answer": answer}
    with path.open("ab") as file:
        file.write(orjson.dumps(record) + b"\n")
