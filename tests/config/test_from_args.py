"""Old command lines as configs: the shipped scripts give the recipes; nothing is passed over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llava_tools.cli.entry import run
from llava_tools.config import load_settings
from llava_tools.config.flag_tables import LORA as LORA_FLAGS
from llava_tools.config.flag_tables import RENAMED, REPLACED, SPECIAL
from llava_tools.config.from_args import like_recipe, settings_from_args
from llava_tools.errors import UserError

# The argument list of MobileLLaMA's two scripts, as facts: name, data, epochs and lr differ.
SCRIPT = """torchrun --nproc_per_node=8 --master_port=20001 fastchat/train/train_mem.py
--model_name_or_path {model} --data_path {data} --bf16 True --output_dir out
--num_train_epochs {epochs} --per_device_train_batch_size 16 --per_device_eval_batch_size 16
--gradient_accumulation_steps 2 --evaluation_strategy steps --eval_steps 2000
--save_strategy steps --save_steps 1800 --save_total_limit 8 --learning_rate {lr}
--weight_decay 0. --warmup_ratio 0.04 --lr_scheduler_type cosine --logging_steps 1
--fsdp 'full_shard auto_wrap' --fsdp_transformer_layer_cls_to_wrap LlamaDecoderLayer --tf32 True
--model_max_length 2048 --gradient_checkpointing True --lazy_preprocess True --report_to none"""
MODELS = {
    "mobilellama_1_4b_sft": ("1.4B", "ShareGPT_2023.05.04v0_Wasteland_Edition.json", 3, 2e-5),
    "mobilellama_2_7b_sft": ("2.7B", "ShareGPT_V4.3_unfiltered_cleaned_split.json", 2, 3e-5),
}
SHORT = ["--data_path", "x.json", "--model_name_or_path", "m"]


def script(name: str) -> list[str]:
    """Return the words of a published script, quotes and all as a shell hands them on."""
    import shlex

    size, data, epochs, lr = MODELS[name]
    model = f"mtgv/MobileLLaMA-{size}-Base"
    return shlex.split(SCRIPT.format(model=model, data=data, epochs=epochs, lr=lr))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_published_scripts_are_the_recipes(name: str) -> None:
    settings, notes = settings_from_args(script(name))
    recipe = load_settings(name)
    assert settings.work_dir == "out"
    assert settings.datasets[0].data_path == Path(recipe.datasets[0].data_path).name
    assert replace(settings, work_dir=None, datasets=recipe.datasets) == recipe
    assert like_recipe(settings) == name
    told = {note.split(":")[0] for note in notes}
    assert told == {
        "--per_device_eval_batch_size", "--evaluation_strategy", "--fsdp", "--tf32",
        "--fsdp_transformer_layer_cls_to_wrap", "--lazy_preprocess",
    }  # fmt: skip
    assert any("--deepspeed deepspeed_zero3" in note for note in notes)


def test_what_is_left_out_is_as_the_trainers_have_it() -> None:
    settings, notes = settings_from_args(SHORT)
    assert (settings.lr, settings.lr_schedule, settings.max_epochs) == (5e-5, "linear", 3)
    assert (settings.max_length, settings.batch_size, settings.dtype) == (512, 8, "fp32")
    assert settings.warmup_ratio == 0 and settings.llm_lora is None and notes == []
    assert like_recipe(settings) is None


def test_lora_and_qlora_of_fastchat() -> None:
    settings, _ = settings_from_args(["train_lora.py", *SHORT])
    assert settings.freeze_llm and settings.llm_quantization is None
    assert settings.llm_lora == {
        "r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
    }  # fmt: skip
    options = (
        "--lora_r 4 --q_lora True --lora-target-modules q_proj k_proj --optim paged_adamw_8bit"
    )
    settings, _ = settings_from_args([*SHORT, *options.split()])
    assert settings.llm_lora is not None and settings.optimizer == "paged_adamw_8bit"
    assert settings.llm_lora["r"] == 4
    assert settings.llm_lora["target_modules"] == ["q_proj", "k_proj"]
    packed = {"bits": 4, "quant_type": "nf4", "double_quant": True}
    assert settings.llm_quantization == packed


def test_llava_and_names_of_other_years() -> None:
    line = """--version plain --vision_tower clip --image_folder pictures --mm_projector_type
    mlp2x_gelu --tune_mm_mlp_adapter True --warmup_steps 0.03 --group_by_modality_length True
    --eval_strategy steps --eval_data_path held.json --eval_steps 10 --weight_decay=0.1
    --gradient_accumulation_steps 4 --mm_vision_select_layer -2 --bf16"""
    settings, _ = settings_from_args([*SHORT, *line.split()])
    assert (settings.prompt_template, settings.visual_encoder_name_or_path) == ("plain", "clip")
    assert settings.projector_depth == 2 and settings.freeze_llm and settings.dtype == "bf16"
    assert settings.warmup_ratio == 0.03 and settings.warmup_steps is None
    assert settings.sampler == "length_grouped" and settings.eval_steps == 40
    assert settings.eval_datasets[0].data_path == "held.json"
    assert settings.save_steps == 2000 and not settings.decay_bias_and_norm


# FastChat's LoRA recipe, and flags that its other trainers and older releases have.
LORA = """deepspeed fastchat/train/train_lora.py --lora_r 8 --lora_alpha 16 --lora_dropout 0.05
--num_train_epochs 3 --fp16 True --per_device_train_batch_size 1 --evaluation_strategy steps
--save_strategy steps --save_steps 200 --learning_rate 2e-5 --warmup_ratio 0.03 --tf32 True
--logging_strategy steps --model_max_length 2048 --q_lora True --lora_weight_path old
--deepspeed playground/deepspeed_config_s2.json --gradient_checkpointing True --flash_attn False"""
OLD = """lazy_preprocess padding_side cache_dir optim model_max_length evaluation_strategy tf32
no_cuda overwrite_output_dir logging_dir group_by_length push_to_hub_token half_precision_backend
fp16_opt_level per_gpu_train_batch_size fsdp_min_num_params local_rank warmup_ratio adafactor
fsdp_transformer_layer_cls_to_wrap save_safetensors dispatch_batches use_legacy_prediction_loop
lora_target_modules lora_weight_path lora_bias q_lora flash_attn train_ratio num_data
last_response_loss split_example_loss efficient_loss"""


def test_every_flag_of_those_trainers_is_known() -> None:
    """FastChat takes all arguments of transformers' Trainer, of any year."""
    from dataclasses import fields

    from transformers import TrainingArguments

    names = {field.name for field in fields(TrainingArguments)} | set(OLD.split())
    assert names <= {*RENAMED, *REPLACED, *SPECIAL, *LORA_FLAGS}
    assert all(text.endswith((".", ")")) for text in REPLACED.values())
    both = [set(table) for table in (RENAMED, REPLACED, SPECIAL, LORA_FLAGS)]
    assert sum(map(len, both)) == len(set().union(*both))  # each in one table


def test_the_lora_recipe_and_other_trainers() -> None:
    settings, notes = settings_from_args([*LORA.split(), *SHORT])
    assert settings.llm_quantization and settings.dtype == "bf16" and settings.save_steps == 200
    said = {note.split(":")[0] for note in notes}
    assert said >= {"--deepspeed", "--fp16", "--lora_weight_path", "--evaluation_strategy"}
    module = ["torchrun", "--nproc_per_node=4", "-m", "fastchat.train.train_lora", *SHORT]
    assert settings_from_args(module).settings.llm_lora
    started = ["python", "-m", "torch.distributed.run", "--nproc_per_node", "4"]
    assert settings_from_args([*started, *module[2:]]).settings.llm_lora
    held, notes = settings_from_args(["train_with_template.py", *SHORT])
    assert held.eval_share == 0.02 and held.llm_lora is None
    assert "takes its template from the model's name; here prompt_template says" in notes[-1]
    options = "--train_ratio 0.9 --last_response_loss True --torch_compile True".split()
    settings = settings_from_args([*SHORT, *options]).settings
    assert (settings.eval_share, settings.train_on, settings.compile) == (0.1, "last", True)


@pytest.mark.parametrize(
    ("flags", "steps", "noted"),
    [
        ("--eval_strategy steps --eval_steps 100", 200, False),
        ("--eval_strategy steps --logging_steps 30", 60, False),  # the Trainer's default
        ("--eval_strategy epoch", 0, True),
        ("--eval_strategy no --eval_steps 100", 0, False),
        ("--eval_steps 100", 0, False),
    ],
)
@pytest.mark.parametrize("held", ["--eval_data_path held.json", "--train_ratio 0.9"])
def test_when_held_out_rows_are_looked_at(flags: str, steps: int, noted: bool, held: str) -> None:
    given = [*SHORT, "--gradient_accumulation_steps", "2", *held.split(), *flags.split()]
    settings, notes = settings_from_args(given)
    assert settings.eval_steps == steps
    assert any("--eval_strategy epoch: eval_steps = 0" in note for note in notes) is noted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fastchat/train/train_flant5.py", *SHORT], "trains an encoder with a decoder"),
        (["-m", "fastchat.train.train_lora_t5", *SHORT], "trains an encoder with a decoder"),
        ([*SHORT, "--learning_rat", "1"], "Unknown flag '--learning_rat'"),
        ([*SHORT, "--learning_rate", "fast"], "--learning_rate fast: not a number"),
        ([*SHORT, "--num_train_epochs", "1.5"], "only whole numbers"),
        ([*SHORT, "--learning_rate"], "takes one value, not 0"),
        ([*SHORT, "--bf16", "maybe"], "neither True nor False"),
        ([*SHORT, "--optim", "adafactor"], "--optim adafactor is not supported"),
        (["train.py", "stray", *SHORT], "'stray' belongs to no flag"),
        (["--model_name_or_path", "m"], "--data_path is missing"),
        ([], "has no flags"),
    ],
)
def test_what_does_not_fit_is_an_error(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings_from_args(arguments)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "mine.py"
    name = "mobilellama_2_7b_sft"
    command = ["config", "from-args", "--output", str(target), "--", *script(name)]
    assert run(command) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(target) and f"the recipe {name}" in shown.err
    assert load_settings(str(target)) == settings_from_args(script(name)).settings
    assert run(command) == 2 and "is there already" in capsys.readouterr().err
    assert run(["config", "from-args", "--", *SHORT, "--learning_rat", "1"]) == 2
    assert "Did you mean '--learning_rate'" in capsys.readouterr().err
