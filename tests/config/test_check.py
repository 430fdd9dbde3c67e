"""Every wrong name, type and value is told before anything loads, with key, place and remedy."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from llava_tools.config import DatasetSpec, Settings, settings_from
from llava_tools.config.check import RULES, Origin
from llava_tools.config.settings import LoraSpec, QuantizationSpec
from llava_tools.errors import UserError

HERE = Origin("my.py", frozenset({"batch_size"}))
LEAST: dict[str, Any] = {
    "llm_name_or_path": "llm",
    "visual_encoder_name_or_path": "clip",
    "prompt_template": "phi3_chat",
    "datasets": [{"data_path": "a.json"}],
}


def build(**changes: Any) -> Settings:
    return settings_from(LEAST | changes, HERE)


def failure(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(**changes)
    assert caught.value.hint, "every error of a config says what to do"
    return str(caught.value)


def test_the_least_config_gets_all_defaults() -> None:
    settings = build()
    assert settings.datasets == (DatasetSpec("a.json"),)
    assert (settings.batch_size, settings.sampler, settings.dtype) == (1, "shuffle", "bf16")
    assert settings.visual_select_layer == -2 and settings.max_length == 2048


def test_lists_become_tuples_and_whole_numbers_numbers() -> None:
    settings = build(betas=[0, 0.95], lr=1, evaluation_images=["a.png"])
    assert settings.betas == (0.0, 0.95) and settings.evaluation_images == ("a.png",)
    assert isinstance(settings.lr, float) and isinstance(settings.betas[0], float)


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"batchsize": 4}, "my.py: unknown key 'batchsize'.", "Did you mean 'batch_size'?"),
        (
            {"datasets": [{"data_path": "a.json", "image_dir": "x"}]},
            "my.py: unknown key 'datasets[0].image_dir'.",
            "Did you mean 'image_folder'?",
        ),
        ({"llm_lora": {"rank": 8}, "freeze_llm": True}, "unknown key 'llm_lora.rank'", "Known: "),
        ({"datasets": [{}]}, "the key 'datasets[0].data_path' is missing", "Add `data_path = "),
    ],
)
def test_unknown_and_missing_keys(changes: dict[str, Any], message: str, hint: str) -> None:
    text = failure(**changes)
    assert message in text and hint in text


def test_a_key_without_default_must_be_there() -> None:
    with pytest.raises(UserError, match="my.py: the key 'prompt_template' is missing"):
        settings_from({k: v for k, v in LEAST.items() if k != "prompt_template"}, HERE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": "1e-4"}, "'lr' must be a number, not '1e-4'"),
        ({"lr": True}, "'lr' must be a number, not True"),
        ({"max_epochs": 1.5}, "'max_epochs' must be a whole number, not 1.5"),
        ({"max_epochs": True}, "'max_epochs' must be a whole number, not True"),
        ({"freeze_llm": 1}, "'freeze_llm' must be True or False, not 1"),
        ({"system": None}, "'system' must be a text, not None"),
        ({"pretrained_pth": 3}, "'pretrained_pth' must be a text or None, not 3"),
        ({"llm_lora": 8}, "'llm_lora' must be a dict(...) or None, not 8"),
        ({"datasets": {"data_path": "a"}}, "'datasets' must be a list, not {'data_path': 'a'}"),
        ({"datasets": ["a.json"]}, "'datasets[0]' must be a dict(...), not 'a.json'"),
        ({"betas": [0.9]}, "'betas' must have 2 members, not [0.9]"),
        ({"evaluation_images": "a.png"}, "'evaluation_images' must be a list, not 'a.png'"),
    ],
)
def test_wrong_types(changes: dict[str, Any], message: str) -> None:
    assert f"my.py: {message}." in failure(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llm_name_or_path": ""}, "'llm_name_or_path' must not be empty"),
        ({"datasets": []}, "'datasets' must not be empty"),
        ({"sampler": "random"}, "must be one of 'shuffle', 'length_grouped', not 'random'"),
        ({"dtype": "fp16"}, "'dtype' must be one of 'bf16', 'fp32', not 'fp16'"),
        ({"loss_reduction": "sum"}, "must be one of 'token', 'micro_batch', not 'sum'"),
        ({"lr": 0}, "'lr' must be a number above 0, not 0.0"),
        ({"lr": float("nan")}, "'lr' must be a number above 0, not nan"),
        ({"max_norm": float("inf")}, "'max_norm' must be a number above 0, not inf"),
        ({"weight_decay": -0.1}, "'weight_decay' must be 0 or more, not -0.1"),
        ({"betas": [0.9, 1.0]}, "'betas' must be 0 or more, and below 1, not (0.9, 1.0)"),
        ({"warmup_ratio": 1.0}, "'warmup_ratio' must be 0 or more, and below 1, not 1.0"),
        ({"max_skipped": 1.1}, "'max_skipped' must lie between 0 and 1, not 1.1"),
        ({"accumulative_counts": 0}, "'accumulative_counts' must be 1 or more, not 0"),
        ({"max_length": 1}, "'max_length' must be 2 or more, not 1"),
        ({"lr": 10**400}, "'lr' must be a number, not 1000"),
        ({"seed": -1}, "'seed' must be 0 or more, and below 2**63, not -1"),
        ({"seed": 2**63}, "'seed' must be 0 or more, and below 2**63"),
        ({"save_steps": -1}, "'save_steps' must be 0 or more, not -1"),
        ({"num_workers": -1}, "'num_workers' must be 0 or more, not -1"),
        ({"datasets": [{"data_path": "a", "rows": 0}]}, "'datasets[0].rows' must be 1 or more"),
        ({"llm_lora": {"lora_dropout": 1.0}}, "'llm_lora.lora_dropout' must be 0 or more"),
        ({"llm_lora": {"bias": "some"}}, "'llm_lora.bias' must be one of 'none', 'all'"),
    ],
)
def test_wrong_values(changes: dict[str, Any], message: str) -> None:
    assert message in failure(freeze_llm=True, **changes)


def test_a_value_of_the_command_line_is_told_as_such() -> None:
    assert failure(batch_size=-4).startswith(
        "--cfg-options: 'batch_size' must be 1 or more, not -4"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llm_lora": {"r": 8}}, "'freeze_llm' is False"),
        (
            {"visual_encoder_lora": {"r": 8}, "freeze_visual_encoder": False},
            "'freeze_visual_encoder' is False",
        ),
        (
            {"visual_encoder_lora": {"r": 8}, "visual_encoder_name_or_path": None},
            "there is no 'visual_encoder_name_or_path'",
        ),
        ({"visual_encoder_name_or_path": None, "freeze_llm": True}, "nothing is left to train"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], message: str) -> None:
    assert message in failure(**changes)


def test_lora_with_a_frozen_llm_is_right() -> None:
    settings = build(freeze_llm=True, llm_lora={"r": 64, "lora_alpha": 16, "target_modules": ["a"]})
    assert settings.llm_lora == {"r": 64, "lora_alpha": 16, "target_modules": ["a"]}


def test_every_rule_belongs_to_a_setting() -> None:
    for kind, rules in RULES.items():
        assert set(rules) <= {field.name for field in fields(kind)}
    assert set(RULES) == {Settings, DatasetSpec, LoraSpec, QuantizationSpec}


@pytest.mark.parametrize(
    ("key", "value"), [("weight", 0.0), ("first_rows", 0), ("max_tokens", 1), ("rows", 0)]
)
def test_a_data_set_of_nothing_is_refused(key: str, value: float) -> None:
    message = failure(datasets=[{"data_path": "a.json", key: value}])
    assert f"datasets[0].{key}" in message and "must be" in message
