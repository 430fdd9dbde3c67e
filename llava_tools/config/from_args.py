"""An old command line (FastChat's trainers, LLaVA's, any of transformers' Trainer) as a config.

Every flag is known: it becomes a setting, or it is told what stands in for it. A flag that is not
in the tables is an error. What the command line leaves out has the default of those trainers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from llava_tools.config.check import Origin, settings_from
from llava_tools.config.flag_tables import (
    DEFAULTS,
    LORA,
    LORA_DEFAULTS,
    OPTIMIZERS,
    RENAMED,
    REPLACED,
    SCHEDULES,
    SPECIAL,
    TEMPLATES,
)
from llava_tools.config.load import load_settings, recipes
from llava_tools.config.settings import Settings
from llava_tools.errors import UserError, did_you_mean, nearest

TRUE = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
FORM = "Write the flags as they were: `llava-tools config from-args -- train_mem.py --flag value`."


class Converted(NamedTuple):
    """The settings, and what is to be told of flags that have no counterpart."""

    settings: Settings
    notes: list[str]


def settings_from_args(arguments: Sequence[str]) -> Converted:
    """Return what an old command line asks for; a launcher and a script before it are passed over.

    Raises UserError for an unknown flag or a value that does not fit it.
    """
    script, flags = read_flags(arguments)
    if re.search(r"(^|[._-]|flan)t5[^/]*$", script, re.IGNORECASE):
        raise UserError(
            f"'{script}' trains an encoder with a decoder (T5); here an LLM is a decoder alone.",
            "Choose a causal LM, and leave the script's name out.",
        )
    known = {*RENAMED, *REPLACED, *SPECIAL, *LORA}
    for name in flags:
        if name not in known:
            close = nearest(name, sorted(known))
            hint = f"Did you mean '--{close}'?" if close else "Leave it out, if it is not needed."
            raise UserError(f"Unknown flag '--{name}'.", hint)
    notes = [f"--{name}: {REPLACED[name]}" for name in flags if name in REPLACED]
    values: dict[str, Any] = dict(DEFAULTS)
    for name, (setting, kind) in RENAMED.items():
        if name in flags:
            values[setting] = _value(name, flags[name], kind)
    values["decay_bias_and_norm"] = not values.get("weight_decay")  # the Trainer spares vectors
    _schedule(flags, values, notes)
    _data(script, flags, values, notes)
    _vision(script, flags, values, notes)
    _adapter(script, flags, values, notes)
    values["max_position_embeddings"] = values["max_length"]
    return Converted(settings_from(values, Origin("command line")), notes)


def read_flags(arguments: Sequence[str]) -> tuple[str, dict[str, list[str]]]:
    """Return the script's name and its flags, each with its values; `-` and `_` are the same.

    Raises UserError for a value that belongs to no flag.
    """
    at = next((i for i, text in enumerate(arguments) if text.endswith(".py")), -1)
    if at < 0 and "-m" in arguments[:-1]:  # the last one: torch.distributed.run comes by -m as well
        at = max(i for i, text in enumerate(arguments[:-1]) if text == "-m") + 1
    flags: dict[str, list[str]] = {}
    name = ""
    for text in arguments[at + 1 :]:
        if text.startswith("--"):
            name, _, value = text[2:].partition("=")
            name = name.replace("-", "_")
            flags[name] = [value] if value else []
        elif text.strip() == "\\" or not text.strip():
            continue
        elif not name:
            raise UserError(f"'{text}' belongs to no flag.", FORM)
        else:
            flags[name].append(text)
    if not flags:
        raise UserError("The command line has no flags.", FORM)
    return (arguments[at] if at >= 0 else ""), flags


def like_recipe(settings: Settings) -> str | None:
    """Return the recipe that has these settings, wherever data and results lie."""
    ours = _anywhere(settings)
    found = (name for name in recipes() if _anywhere(load_settings(name)) == ours)
    return next(found, None)


def _anywhere(settings: Settings) -> Settings:
    specs = tuple(replace(spec, data_path="data") for spec in settings.datasets)
    return replace(settings, datasets=specs, work_dir=None)


def _value(name: str, given: list[str], kind: Callable[[str], Any]) -> Any:
    if kind is bool:
        return _flag(name, given)
    if len(given) != 1:
        raise UserError(f"--{name} takes one value, not {len(given)}.", FORM)
    try:
        number = kind(float(given[0])) if kind is int else kind(given[0])
    except (ValueError, OverflowError) as error:
        raise UserError(f"--{name} {given[0]}: not a number.", FORM) from error
    if kind is int and number != float(given[0]):
        raise UserError(
            f"--{name} {given[0]}: only whole numbers are supported.", f"Give {number} or more."
        )
    return number


def _flag(name: str, given: list[str]) -> bool:
    text = (given or ["true"])[0].lower()
    if text not in TRUE or len(given) > 1:
        raise UserError(f"--{name} {' '.join(given)}: neither True nor False.", FORM)
    return TRUE[text]


def _on(flags: Mapping[str, list[str]], name: str) -> bool:
    return name in flags and _flag(name, flags[name])


def _one(flags: Mapping[str, list[str]], name: str, table: Mapping[str, str]) -> str:
    """Return what the table has for a flag's value."""
    value = _value(name, flags[name], str)
    if value not in table:
        raise UserError(f"--{name} {value} is not supported.", did_you_mean(value, table))
    return table[value]


def _schedule(flags: Mapping[str, list[str]], values: dict[str, Any], notes: list[str]) -> None:
    """Steps: ours are counted in micro-batches."""
    window = values["accumulative_counts"]
    if "lr_scheduler_type" in flags:
        values["lr_schedule"] = _one(flags, "lr_scheduler_type", SCHEDULES)
        if flags["lr_scheduler_type"] == ["constant"]:
            values["warmup_steps"] = 0  # there, this schedule has no warm-up whatever else is said
    if "warmup_steps" in flags and values.get("warmup_steps") != 0:
        steps = _value("warmup_steps", flags["warmup_steps"], float)
        # transformers 5 takes a share there; 0 leaves it to the ratio
        values |= {"warmup_ratio": steps} if 0 < steps < 1 else {}
        values |= {"warmup_steps": int(steps)} if steps >= 1 else {}
    if "optim" in flags:
        values["optimizer"] = _one(flags, "optim", OPTIMIZERS)
    strategy = flags.get("save_strategy", ["steps"])
    values["save_steps"] = window * values["save_steps"] if strategy == ["steps"] else 0
    if strategy == ["epoch"]:
        notes.append("--save_strategy epoch: save_steps = 0 saves at the end; set it to a number.")
    if _on(flags, "fp16") and not _on(flags, "bf16"):
        notes.append("--fp16: dtype = 'bf16', which needs no loss scale.")
    elif not _on(flags, "bf16"):
        values["dtype"] = "fp32"
    values["betas"] = (
        _value("adam_beta1", flags.get("adam_beta1", ["0.9"]), float),
        _value("adam_beta2", flags.get("adam_beta2", ["0.999"]), float),
    )
    if "report_to" in flags:
        values["report_to"] = ["auto" if n == "all" else n for n in flags["report_to"]]
    if _on(flags, "group_by_length") or _on(flags, "group_by_modality_length"):
        values["sampler"] = "length_grouped"


def _data(
    script: str, flags: Mapping[str, list[str]], values: dict[str, Any], notes: list[str]
) -> None:
    if "data_path" not in flags:
        raise UserError("--data_path is missing.", "Add it: the file to train on.")
    options: dict[str, Any] = {}
    if "image_folder" in flags:
        options["image_folder"] = _value("image_folder", flags["image_folder"], str)
        options["pad_image_to_square"] = flags.get("image_aspect_ratio") == ["pad"]
    values["datasets"] = [dict(data_path=_value("data_path", flags["data_path"], str), **options)]
    if _on(flags, "last_response_loss"):
        values["train_on"] = "last"
    if "eval_data_path" in flags:
        path = _value("eval_data_path", flags["eval_data_path"], str)
        values["eval_datasets"] = [dict(data_path=path, **options)]
    elif "train_ratio" in flags or "train_with_template" in script:  # which holds the rest out
        ratio = _value("train_ratio", flags.get("train_ratio", ["0.98"]), float)
        values["eval_share"] = round(1 - ratio, 9)
    _evaluation(flags, values, notes)


def _evaluation(flags: Mapping[str, list[str]], values: dict[str, Any], notes: list[str]) -> None:
    """When the held-out rows are looked at; the Trainer's default is as often as it logs."""
    asked = next((n for n in ("eval_strategy", "evaluation_strategy") if n in flags), None)
    if asked is None or flags[asked] == ["no"]:
        return
    if "eval_datasets" not in values and "eval_share" not in values:
        notes.append(
            f"--{asked}: no --eval_data_path is given, so there is no evaluation; "
            "eval_share = 0.01 would hold rows out."
        )
    elif flags[asked] == ["steps"]:
        steps = _value("eval_steps", flags.get("eval_steps", ["0"]), int) or values["log_interval"]
        values["eval_steps"] = steps * values["accumulative_counts"]
    else:
        text = " ".join(flags[asked])
        notes.append(f"--{asked} {text}: eval_steps = 0 evaluates in the end; set it to a number.")


def _vision(
    script: str, flags: Mapping[str, list[str]], values: dict[str, Any], notes: list[str]
) -> None:
    """The template, and LLaVA's own flags."""
    if "version" in flags:
        values["prompt_template"] = _one(flags, "version", TEMPLATES)
    elif "train_with_template" in script:
        notes.append(
            f"{script}: takes its template from the model's name; "
            f"here prompt_template says it ('{values['prompt_template']}', docs/templates.md)."
        )
    if "vision_tower" not in flags:
        return
    values["visual_encoder_name_or_path"] = _value("vision_tower", flags["vision_tower"], str)
    depths = {"linear": "1", "mlp2x_gelu": "2", "mlp3x_gelu": "3"}
    name = "mm_projector_type"
    values["projector_depth"] = int(_one(flags, name, depths)) if name in flags else 1
    if _on(flags, "tune_mm_mlp_adapter") or _on(flags, "freeze_backbone"):
        values["freeze_llm"] = True
    notes.append("--model_max_length counts an image as its patches, max_length as one token.")


def _adapter(
    script: str, flags: Mapping[str, list[str]], values: dict[str, Any], notes: list[str]
) -> None:
    """LoRA: FastChat's train_lora.py, or LLaVA's --lora_enable."""
    whole = "lora_enable" in flags and not _on(flags, "lora_enable")
    if whole or not ("lora" in script or any(name in flags for name in LORA)):
        return
    lora: dict[str, Any] = dict(LORA_DEFAULTS)
    if "lora_enable" in flags:  # LLaVA's own defaults: every linear layer, rank 64
        lora = dict(r=64, lora_alpha=16, lora_dropout=0.05, bias="none")
    for name in ("lora_r", "lora_alpha", "lora_dropout", "lora_bias"):
        if name in flags:
            setting, kind = LORA[name]
            lora[setting] = _value(name, flags[name], kind)
    if "lora_target_modules" in flags:
        lora["target_modules"] = flags["lora_target_modules"]
    values |= {"freeze_llm": True, "llm_lora": lora}
    bits = _value("bits", flags.get("bits", ["16"]), int)
    if _on(flags, "q_lora") or bits in (4, 8):
        packed = dict(bits=bits if bits in (4, 8) else 4, quant_type="nf4", double_quant=True)
        values["llm_quantization"] = packed
