"""What a result rests on: the weights, the settings and the versions that made the answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llava_tools.eval.benchmark import Question
from llava_tools.eval.predictions import prompt_hash
from llava_tools.model.identity import dtype_name, versions, weights_digest

__all__ = ["dtype_name", "model_fingerprint", "prompts_digest", "versions", "weights_digest"]

if TYPE_CHECKING:
    from llava_tools.model.load import Assistant


def prompts_digest(questions: Sequence[Question]) -> str:
    """Return one hash of all prompts in order, with which of their rows' pictures are shown."""
    joined = "".join(
        f"{prompt_hash(question)}{[picture.part for picture in question.pictures]}"
        for question in questions
    )
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def model_fingerprint(assistant: Assistant) -> dict[str, Any]:
    """Return what of the model decides its answers."""
    return {
        "weights": weights_digest(assistant.model),
        "prompt_template": assistant.template.name,
        "pad_image_to_square": assistant.pad_to_square,
        "dtype": dtype_name(assistant.model),
    }
