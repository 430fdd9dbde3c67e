"""Rotary settings of transformers 4 and 5: read from either, written for both."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig

from llava_tools.model.rope import for_both_generations, rope_parameters, stretch_positions

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192, "rope_type": "llama3"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "version 4": (
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_type": "default"},
    ),
    "version 5": (
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_theta": 5e5, "rope_type": "default"},
    ),
    "linear, old": (
        {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0},
    ),
    "llama 3.1, version 4": (
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_theta": 5e5, **LLAMA3},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_either_generation_is_read_and_both_are_written(name: str) -> None:
    config, wanted = CASES[name]
    assert rope_parameters(config) == wanted
    both = for_both_generations(config, "float16")
    assert both["rope_theta"] == wanted["rope_theta"]
    assert both["torch_dtype"] == both["dtype"] == "float16"
    assert (both["rope_scaling"] is None) == (wanted["rope_type"] == "default")
    for keys in (("rope_theta", "rope_scaling"), ("rope_parameters",)):
        assert rope_parameters({key: both[key] for key in keys}) == wanted
    read = LlamaConfig(**{k: v for k, v in both.items() if k not in ("torch_dtype", "dtype")})
    assert read.rope_parameters["rope_theta"] == wanted["rope_theta"]
    assert read.rope_parameters["rope_type"] == wanted["rope_type"]
    assert read.rope_parameters.get("factor") == wanted.get("factor")


def test_what_is_not_understood_is_left_alone() -> None:
    assert rope_parameters({}) == {"rope_theta": 1e4, "rope_type": "default"}
    several = {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "other": {}}}
    for config in ({}, several):
        names = {"torch_dtype": "float16", "dtype": "float16"}
        assert for_both_generations(config, "float16") == config | names


def test_old_readers_get_the_two_keys_they_allow() -> None:
    config = {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}}
    assert for_both_generations(config, "float16")["rope_scaling"] == {
        "type": "linear",
        "factor": 2.0,
    }


def test_partial_rotation_is_kept() -> None:
    new = {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}
    for config in (
        {"partial_rotary_factor": 0.5, **new},
        {"rope_parameters": {**new["rope_parameters"], "partial_rotary_factor": 0.5}},
    ):
        both = for_both_generations(config, "float16")
        assert both["partial_rotary_factor"] == 0.5
        assert both["rope_parameters"]["partial_rotary_factor"] == 0.5


def test_positions_stretch_as_in_training() -> None:
    config = {"max_position_embeddings": 2048, "rope_theta": 1e4, "rope_scaling": None}
    assert stretch_positions(config, None) == config
    assert stretch_positions(config, 2048) == config
    longer = stretch_positions(config, 5000)
    assert longer["max_position_embeddings"] == 5000
    assert rope_parameters(longer) == {"rope_theta": 1e4, "rope_type": "linear", "factor": 3.0}
    llama3 = {"max_position_embeddings": 512, "rope_theta": 5e5, "rope_scaling": LLAMA3}
    assert rope_parameters(stretch_positions(llama3, 1000)) == {
        "rope_theta": 5e5,
        "rope_type": "linear",
        "factor": 2.0,
    }


def test_a_config_that_leaves_its_context_to_its_class_stretches_too() -> None:
    longer = stretch_positions({"model_type": "llama"}, 5000)  # Llama's default is 2048
    assert longer["max_position_embeddings"] == 5000
    assert longer["rope_parameters"]["factor"] == 3.0
    assert stretch_positions({}, 5000) == {}
