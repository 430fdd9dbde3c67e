"""The two ends of an LLM's vocabulary, tied or apart, where an adapter holds either as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_tools.errors import UserError
from llava_tools.model.lazy import LazyTensor
from llava_tools.model.parts import TWINS, same_twins

Tensors = Mapping[str, LazyTensor]


def settle_embeddings(
    config: Mapping[str, Any], base: Tensors, whole: Tensors, tensors: Tensors, where: str
) -> tuple[dict[str, LazyTensor], dict[str, Any]]:
    """Return the tensors, and the config saying how many embeddings there are and whether tied.

    `whole` are the weights that an adapter brings as a whole, already among `tensors`. peft trains
    a copy of tied embeddings, beside which the other end keeps the base's weights.

    Raises UserError for a vocabulary that has grown at one end only.
    """
    settled = dict(tensors)
    held = [name for name in TWINS if name in whole]
    if not held:
        return settled, dict(config)
    first, last = TWINS
    rows = {whole[name].shape[0] for name in held}
    grown = rows != {base[first].shape[0]}
    tied = bool(config.get("tie_word_embeddings"))
    if tied and held == [last] and grown:
        settled[first] = settled.pop(last)
    elif tied and not (grown and held == [first]):
        settled.setdefault(last, base[first])
        settled.setdefault(first, base[first])
        tied = same_twins(settled)
        if tied:
            del settled[last]
    sizes = {settled[name].shape[0] for name in TWINS if name in settled}
    if len(sizes) != 1:
        raise UserError(
            f"{where} holds embeddings of {max(sizes)} tokens at one end of the model "
            f"only; the other has {min(sizes)}.",
            "Save the adapter again with both: save_pretrained(..., save_embedding_layers=True).",
        )
    return settled, dict(config) | {"vocab_size": sizes.pop(), "tie_word_embeddings": tied}
