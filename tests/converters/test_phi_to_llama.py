"""Phi-3 as Llama: equal logits, and a refusal of what Llama cannot express."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llava_tools.converters.aliases import phi_to_llama
from llava_tools.converters.phi_to_llama import as_llama, llama_config
from llava_tools.errors import UserError
from llava_tools.model.source import open_source
from tests import tiny
from tests.model.checkpoints import edit_json, tie

PHI3 = {
    "model_type": "phi3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 99,
    "max_position_embeddings": 4096,
    "rope_theta": 1e4,
    "sliding_window": 2047,
    "resid_pdrop": 0.1,
    "auto_map": {"AutoModel": "x"},
}


def logits(folder: Path, ids: torch.Tensor) -> Any:
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        return model, model.eval()(ids).logits


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_equal(tmp_path: Path, kv_heads: int, tied: bool) -> None:
    phi = tiny.save_llm(tmp_path / "phi3", "phi3", kv_heads=kv_heads)
    if tied:
        tie(phi)
    phi_to_llama(phi, tmp_path / "llama")
    ids = torch.randint(0, 400, (2, 60), generator=torch.Generator().manual_seed(0))
    before, wanted = logits(phi, ids)
    after, found = logits(tmp_path / "llama", ids)
    assert (type(before).__name__, type(after).__name__) == ("Phi3ForCausalLM", "LlamaForCausalLM")
    assert float((wanted - found).abs().max()) < 1e-5
    assert float(wanted.abs().max()) > 0.1
    assert after.config.num_key_value_heads == kv_heads
    assert after.config.tie_word_embeddings is tied


def test_shards_and_tokenizer_come_along(tmp_path: Path, parts: Path) -> None:
    phi_to_llama(parts / "phi3", tmp_path / "llama", max_shard_size="30KB")
    assert len(list((tmp_path / "llama").glob("model-*.safetensors"))) > 1
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "llama" / name).is_file()


def test_what_is_no_phi3_is_refused(tmp_path: Path, parts: Path) -> None:
    with pytest.raises(UserError, match="is no Phi-3, but a llama"):
        phi_to_llama(parts / "llama3", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    source = open_source(parts / "llama3")
    assert as_llama(source) is source


def test_a_sliding_window_caps_the_positions(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config = llama_config(PHI3, "'x'")
    assert config["max_position_embeddings"] == 2047
    assert "sliding window of 2047 tokens" in caplog.text
    assert not {"sliding_window", "resid_pdrop", "auto_map"} & set(config)
    for window in (None, 4096, 262144):
        caplog.clear()
        config = llama_config(PHI3 | {"sliding_window": window}, "'x'")
        assert config["max_position_embeddings"] == 4096 and not caplog.text


def test_within_the_window_nothing_differs(tmp_path: Path) -> None:
    phi = tiny.save_llm(tmp_path / "phi3", "phi3")
    edit_json(phi / "config.json", sliding_window=20)
    phi_to_llama(phi, tmp_path / "llama")
    ids = torch.randint(0, 400, (1, 40), generator=torch.Generator().manual_seed(0))
    _, wanted = logits(phi, ids)
    after, found = logits(tmp_path / "llama", ids)
    longest = after.config.max_position_embeddings
    assert longest == 20
    assert float((wanted - found)[:, :longest].abs().max()) < 1e-5
    assert float((wanted - found)[:, longest:].abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["longrope", "su"])
def test_long_ropes_are_refused(kind: str) -> None:
    scaling = {"type": kind, "long_factor": [1.0], "short_factor": [1.0]}
    with pytest.raises(UserError, match=f"scales its positions by '{kind}'"):
        llama_config(PHI3 | {"rope_scaling": scaling}, "'x'")


@pytest.mark.parametrize("place", ["top", "rope"])
def test_partial_rotation_is_refused(place: str) -> None:
    inner = {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.75}}
    config = PHI3 | ({"partial_rotary_factor": 0.75} if place == "top" else inner)
    with pytest.raises(UserError, match="partial_rotary_factor = 0.75"):
        llama_config(config, "'x'")


def test_a_config_of_other_head_counts_is_refused(tmp_path: Path, parts: Path) -> None:
    phi = tiny.save_llm(tmp_path / "phi3", "phi3")
    edit_json(phi / "config.json", num_key_value_heads=2)
    with pytest.raises(UserError, match=r"qkv_proj.weight has 96 rows.*32 \+ 16 \+ 16 = 64"):
        phi_to_llama(phi, tmp_path / "llama")
    assert not (tmp_path / "llama").exists()
