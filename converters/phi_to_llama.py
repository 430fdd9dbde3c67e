"""Phi-3 as Llama: the same mathematics, with its fused projections split by head counts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llava_tools.errors import UserError
from llava_tools.model.keymap import convert
from llava_tools.model.rope import rope_parameters
from llava_tools.model.source import Source
from llava_tools.model.tables import phi3_to_llama

log = logging.getLogger(__name__)

# What the two configs share. Phi-3's dropouts act in training only; it has no biases.
_SHARED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps"),
    *("initializer_range", "attention_dropout", "tie_word_embeddings", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)


def llama_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the Llama config that equals a Phi-3 config.

    Llama has no sliding window. Up to its length the two are equal, so the window becomes the
    longest context. Raises UserError for what Llama cannot express.
    """
    rope = rope_parameters(config)
    if rope["rope_type"] in ("longrope", "su"):
        raise UserError(
            f"{where} scales its positions by '{rope['rope_type']}' (a 128k model).",
            "Llama cannot express that; keep the model in the xtuner format.",
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(
            f"{where} rotates only a part of each head "
            f"(partial_rotary_factor = {rope['partial_rotary_factor']}).",
            "Llama cannot express that; keep the model in the xtuner format.",
        )
    heads = config["num_attention_heads"]
    llama = {key: config[key] for key in _SHARED if key in config}
    llama |= {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_parameters": {k: v for k, v in rope.items() if k != "partial_rotary_factor"},
    }
    window, longest = config.get("sliding_window"), config["max_position_embeddings"]
    if window and window < longest:
        log.warning(
            "%s attends over a sliding window of %d tokens, which Llama cannot; both are equal "
            "up to that length, so max_position_embeddings becomes %d (was %d).",
            where,
            window,
            window,
            longest,
        )
        llama["max_position_embeddings"] = window
    return llama


def as_llama(source: Source) -> Source:
    """Return a Phi-3 source as a Llama; any other source as it is."""
    if source.llm_config["model_type"] != "phi3":
        return source
    where = f"'{source.path}'"
    config = llama_config(source.llm_config, where)
    parts = {name: tensor for name, tensor in source.tensors.items() if name.startswith("llm.")}
    rest = {name: tensor for name, tensor in source.tensors.items() if name not in parts}
    layers = int(config["num_hidden_layers"])
    llm = convert(parts, phi3_to_llama(source.llm_config), where, layers)
    return replace(source, tensors={**llm, **rest}, llm_config=config)
