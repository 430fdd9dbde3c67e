"""The scores of some rows as records: losses and perplexities, or perplexity and embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llava_tools.constants import IMAGE_TOKEN_ID
from llava_tools.curate.losses import Pixels, positions, prompt_states, span_losses
from llava_tools.curate.ratios import exponential, finite, ratios
from llava_tools.curate.rows import Example, Row
from llava_tools.curate.score_log import Record, Vectors
from llava_tools.curate.scorer import Scorer
from llava_tools.curate.streams import Stream, Streams, prompt_streams, score_streams
from llava_tools.data.images import open_image
from llava_tools.data.prepare import image_reason
from llava_tools.errors import UserError

Made = tuple[Record, Vectors | None]


def cherry_records(scorer: Scorer, rows: Sequence[Row]) -> list[Made]:
    """Return the losses and IFD of some rows.

    `loss` is the mean over the answer's tokens behind its question, `direct_loss` behind nothing;
    ifd_loss is their ratio (Cherry_LLM), ifd_ppl that of their exponentials (Superfiltering).
    Of a row with images, `loss` is with them, `text_loss` with the question alone.
    """
    planned = [(_record(row), _plan(scorer, row.example, score_streams)) for row in rows]
    streams: list[Stream] = []
    images: dict[int, Pixels] = {}
    for _, plan in planned:
        if not isinstance(plan, str):
            images[len(streams)] = plan[1]
            streams += plan[0].all()
    budget = scorer.options.batch_tokens
    losses = iter(span_losses(scorer.model, streams, lambda i: images.get(i, ()), budget))
    made: list[Made] = []
    for record, plan in planned:
        if isinstance(plan, str):
            made.append((record | {"reason": plan}, None))
            continue
        passes = plan[0]
        asked, *others = (sum(next(losses)) for _ in passes.all())
        count = passes.asked.scored
        text = others.pop() / count if passes.unseen else None
        record |= {"tokens": count, "prompt_tokens": passes.asked.spans[0][0]}
        record |= ratios(asked / count, sum(others) / count, text)
        record |= {"flags": list(passes.flags)} if passes.flags else {}
        record |= {} if record["ifd_loss"] is not None else {"reason": "not_finite"}
        made.append((record, None))
    return made


def _record(row: Row) -> Record:
    return {"row": row.place, "id": row.key}


def _plan(
    scorer: Scorer, example: Example | str, plan: Callable[..., Streams | str]
) -> tuple[Streams, Pixels] | str:
    """Return the passes of a row with its pixels, or why it gets no score."""
    if isinstance(example, str):
        return example
    found = plan(example, scorer.prompt, scorer.codec, scorer.options.max_length)
    if isinstance(found, str):
        return found
    context = scorer.context
    if context and positions(found.asked, scorer.model.num_patches) > context:
        return "beyond_context"
    pixels = _open(scorer, example.images[: found.asked.ids.count(IMAGE_TOKEN_ID)])
    return pixels if isinstance(pixels, str) else (found, pixels)


def _open(scorer: Scorer, paths: Sequence[str]) -> Pixels | str:
    """Return the pixels of images, or why they cannot be had."""
    if not paths:
        return ()
    if scorer.processor is None:
        return "image_without_tower"
    try:
        images = [open_image(path, scorer.options.image_folder) for path in paths]
    except UserError as error:
        return image_reason(error)
    return [scorer.processor(image, scorer.pad_to_square) for image in images]


def pre_records(scorer: Scorer, rows: Sequence[Row]) -> list[Made]:
    """Return the perplexity of each row's prompt and the mean of its last hidden states."""
    planned = [(_record(row), _plan(scorer, row.example, prompt_streams)) for row in rows]
    kept = [plan for _, plan in planned if not isinstance(plan, str)]
    streams, images = [passes.asked for passes, _ in kept], [pixels for _, pixels in kept]
    budget = scorer.options.batch_tokens
    states = iter(prompt_states(scorer.model, streams, images.__getitem__, budget))
    made: list[Made] = []
    for record, plan in planned:
        if isinstance(plan, str):
            made.append((record | {"reason": plan}, None))
            continue
        total, count, vector = next(states)
        loss = total / count
        record |= {"loss": finite(loss), "ppl": exponential(loss), "prompt_tokens": count}
        made.append((record, vector))
    return made


RECORDS: dict[str, Callable[[Scorer, Sequence[Row]], list[Made]]] = {
    "cherry": cherry_records,
    "pre": pre_records,
}
