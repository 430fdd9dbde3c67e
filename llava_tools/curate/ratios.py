"""Scores of mean losses. Without torch, as choosing rows needs nothing of it."""

from __future__ import annotations

import math

from llava_tools.curate.score_log import Record


def ratios(loss: float, direct: float, text: float | None = None) -> Record:
    """Return the scores of mean losses: with question (and images), without, without the images."""
    scores: Record = {"loss": finite(loss), "direct_loss": finite(direct)}
    scores |= {"ppl": exponential(loss), "direct_ppl": exponential(direct)}
    scores |= {"ifd_loss": _ratio(loss, direct), "ifd_ppl": exponential(loss - direct)}
    if text is not None:
        scores |= {"text_loss": finite(text), "ifd_image": _ratio(loss, text)}
    return scores


def finite(value: float) -> float | None:
    """Return a number, None for what is none or infinite."""
    return value if math.isfinite(value) else None


def exponential(value: float) -> float | None:
    """Return a perplexity; None beyond a double's reach."""
    return math.exp(value) if value < 700 else None  # beyond a double's reach; NaN compares false


def _ratio(value: float, other: float) -> float | None:
    return finite(value / other) if other else None
