"""What a result rests on: the weights, the settings and the versions that made the answers."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from llava_tools.eval.benchmark import Question
from llava_tools.eval.predictions import prompt_hash

if TYPE_CHECKING:
    from llava_tools.model.llava import LlavaModel
    from llava_tools.model.load import Assistant

SAMPLES_PER_TENSOR = 64


def weights_digest(model: LlavaModel) -> str:
    """Return a hash over a sample of every tensor: equal weights, equal digest, in any format.

    Training moves every weight of a tensor, so a sample tells two checkpoints apart, and a model
    of many GB takes well under a second.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLES_PER_TENSOR)][:SAMPLES_PER_TENSOR]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(sample.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]


def dtype_name(model: LlavaModel) -> str:
    """Return the dtype of the language model, for example `bfloat16`."""
    dtype = next(p.dtype for p in model.llm.parameters() if p.is_floating_point())
    return str(dtype).removeprefix("torch.")


def prompts_digest(questions: Sequence[Question]) -> str:
    """Return one hash of all prompts in order: it changes when the wording of any does."""
    joined = "".join(prompt_hash(question) for question in questions)
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def model_fingerprint(assistant: Assistant) -> dict[str, Any]:
    """Return what of the model decides its answers."""
    return {
        "weights": weights_digest(assistant.model),
        "prompt_template": assistant.template.name,
        "pad_image_to_square": assistant.pad_to_square,
        "dtype": dtype_name(assistant.model),
    }


def versions() -> dict[str, str]:
    """Return the versions of what computes the answers."""
    packages = {name: version(name) for name in ("torch", "transformers", "tokenizers", "pillow")}
    return {"python": platform.python_version(), **packages}
