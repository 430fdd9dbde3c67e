"""Which rows FastChat's trainer masks as a whole, to leave out the same ones.

Its rule (fastchat/train/train.py, unchanged since 2024): the text is cut at `</s>` into turns, each
turn at " ASSISTANT: ", and the lengths of the turns are added up, token by token. A turn that does
not fall into two parts ends the count. A row whose count is not its length, and below max_length,
is masked. Rows that end FastChat with an error are treated as always: mended, or left out.
"""

from __future__ import annotations

from llava_tools.data.codec import Codec
from llava_tools.data.sample import Sample
from llava_tools.data.templates import get_template

END, MARK, PAD = "</s>", " ASSISTANT: ", "<unk>"
DIES_OF = frozenset({"questions_merged", "answer_repeated"})  # a role twice, by what was mended


def masks_all(sample: Sample, codec: Codec, max_length: int) -> bool:
    """Tell whether FastChat masks all of a row, so that nothing in it trains.

    For a tokenizer in the old manner of Llama: BOS in front, a space before every text.
    """
    if DIES_OF & set(sample.mended) or sample.mended.count("answer_first") > 1:
        return False
    text = _text(sample)
    ids = codec.encode(text)
    pads = ids[: max_length - 1].count(codec.encode(PAD)[0]) if PAD in text else 0
    counted = _counted(text, codec)
    return counted < max_length and counted != min(1 + len(ids), max_length) - pads


def _text(sample: Sample) -> str:
    """Return the row as FastChat writes it: an empty message has neither space nor end."""
    text = f"{get_template('vicuna_v1.1').default_system} "
    for turn in sample.turns:
        role, end = ("USER", " ") if turn.role == "user" else ("ASSISTANT", END)
        text += f"{role}: {turn.text}{end}" if turn.text else f"{role}:"
    # A last question without an answer was dropped from the row; FastChat keeps it.
    return text + ("USER: ? " if "question_unanswered" in sample.mended else "")


def _counted(text: str, codec: Codec) -> int:
    """Return how many tokens the turns take until one is not a question with its answer."""
    counted = 1
    for turn in text.split(END):
        if not turn or len(turn.split(MARK)) != 2:
            break
        counted += 1 + len(codec.encode(turn))
    return counted
