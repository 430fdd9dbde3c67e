"""Turn the values of a config into `Settings`: every name, type and value is checked here."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from llava_tools.config.settings import DatasetSpec, LoraSpec, QuantizationSpec, Settings
from llava_tools.config.together import FAULTS
from llava_tools.errors import UserError, did_you_mean

T = TypeVar("T")
Rule = tuple[Callable[[Any], bool], str]

EXAMPLE_HINT = "`llava-tools config show NAME` prints a complete config."
TYPE_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "True or False"}


def _at_least(low: int) -> Rule:
    return lambda value: bool(value >= low), f"must be {low} or more"


def _one_of(*names: object) -> Rule:
    return lambda value: value in names, f"must be one of {', '.join(map(repr, names))}"


_POSITIVE: Rule = (lambda value: 0 < value < math.inf, "must be a number above 0")
_SHARE: Rule = (lambda value: 0 <= value <= 1, "must lie between 0 and 1")
_BELOW_ONE: Rule = (lambda value: 0 <= value < 1, "must be 0 or more, and below 1")
_GIVEN: Rule = (bool, "must not be empty")

# What accelerate has adapters for; `auto` is TensorBoard where installed.
TRACKERS = (
    "auto", "none", "tensorboard", "wandb", "comet_ml", "mlflow",
    "aim", "clearml", "dvclive", "swanlab", "trackio",
)  # fmt: skip

TRAIN_ON = ("all", "last", "full")
# AdamW: torch's own, or a class of bitsandbytes, its state in 8 bits, or paged out of a full GPU.
OPTIMIZERS = {
    "adamw": None,
    "adamw_8bit": "AdamW8bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "paged_adamw_32bit": "PagedAdamW32bit",
}

RULES: dict[type, dict[str, Rule]] = {
    DatasetSpec: {
        "data_path": _GIVEN,
        "max_rows": _at_least(1),
        "first_rows": _at_least(1),
        "weight": _POSITIVE,
        "max_tokens": _at_least(2),
        "train_on": _one_of(*TRAIN_ON),
        "rows": _at_least(1),
    },
    LoraSpec: {
        "r": _at_least(1),
        "lora_alpha": _at_least(1),
        "lora_dropout": _BELOW_ONE,
        "bias": _one_of("none", "all", "lora_only"),
    },
    QuantizationSpec: {"bits": _one_of(4, 8), "quant_type": _one_of("nf4", "fp4")},
    Settings: {
        "llm_name_or_path": _GIVEN,
        "visual_encoder_name_or_path": _GIVEN,
        "prompt_template": _GIVEN,
        "datasets": _GIVEN,
        "projector_depth": _at_least(1),
        "max_position_embeddings": _at_least(1),
        "max_length": _at_least(2),
        "sampler": _one_of("shuffle", "length_grouped"),
        "num_workers": _at_least(0),
        "train_on": _one_of(*TRAIN_ON),
        "max_skipped": _SHARE,
        "batch_size": _at_least(1),
        "accumulative_counts": _at_least(1),
        "max_epochs": _at_least(1),
        "lr": _POSITIVE,
        "lr_schedule": _one_of("cosine", "linear", "constant"),
        "optimizer": _one_of(*OPTIMIZERS),
        "betas": (lambda pair: all(0 <= b < 1 for b in pair), "must be 0 or more, and below 1"),
        "weight_decay": (lambda value: 0 <= value < math.inf, "must be 0 or more"),
        "max_norm": _POSITIVE,
        "warmup_ratio": _BELOW_ONE,
        "warmup_steps": _at_least(0),
        "dtype": _one_of("bf16", "fp32"),
        "loss_reduction": _one_of("token", "micro_batch"),
        "save_steps": _at_least(0),
        "save_total_limit": _at_least(1),
        "eval_share": _BELOW_ONE,
        "eval_rows": _at_least(1),
        "eval_steps": _at_least(0),
        "evaluation_freq": _at_least(0),
        "log_interval": _at_least(1),
        "report_to": (
            lambda names: all(name in TRACKERS for name in names),
            f"must name trackers: {', '.join(TRACKERS)}",
        ),
        "seed": (lambda value: 0 <= value < 2**63, "must be 0 or more, and below 2**63"),
    },
}

# Settings that are plain dicts, kept as they are; their names and values are checked all the same.
NESTED: dict[str, type] = {
    "llm_lora": LoraSpec,
    "visual_encoder_lora": LoraSpec,
    "llm_quantization": QuantizationSpec,
}


@dataclass(frozen=True)
class Origin:
    """Where a value was written: the config file, or the command line."""

    file: str
    overridden: frozenset[str] = frozenset()

    def of(self, key: str) -> str:
        """Return the place of `key` (`datasets[0].rows` belongs to `datasets`)."""
        root = key.split(".")[0].split("[")[0]
        return "--cfg-options" if root in self.overridden else self.file


def settings_from(values: Mapping[str, Any], origin: Origin) -> Settings:
    """Return the checked settings.

    Raises:
        UserError: an unknown or missing key, a wrong type, or a value out of range.
    """
    settings = _build(Settings, values, origin)
    for key, kind in NESTED.items():
        nested = getattr(settings, key)
        if nested is not None:
            _build(kind, nested, origin, f"{key}.")
    _check_together(settings, origin)
    return settings


def _build(kind: type[T], values: Mapping[str, Any], origin: Origin, prefix: str = "") -> T:
    """Return `kind(**values)` after checking names, types and ranges."""
    hints = get_type_hints(kind)
    for key in values:
        if key not in hints:
            message = f"{origin.of(prefix + key)}: unknown key '{prefix}{key}'."
            raise UserError(message, did_you_mean(key, hints))
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.name not in values:
            message = f"{origin.of(prefix)}: the key '{prefix}{field.name}' is missing."
            raise UserError(message, f"Add `{field.name} = ...` to the config.")
    fitted = {k: _fit(v, hints[k], origin, prefix + k) for k, v in values.items()}
    for key, (holds, text) in RULES[kind].items():
        value = fitted.get(key)
        if value is not None and not holds(value):
            message = f"{origin.of(prefix + key)}: '{prefix}{key}' {text}, not {value!r}."
            raise UserError(message, _default_hint(kind, key))
    return kind(**fitted)


def _default_hint(kind: type, key: str) -> str:
    default = getattr(kind, key, None)  # dataclasses keep defaults as class attributes
    if default is None:
        return EXAMPLE_HINT
    return f"The default is {default!r}."


def _fit(value: Any, hint: Any, origin: Origin, key: str) -> Any:
    """Return `value` as the type `hint`: lists become tuples and whole numbers numbers."""
    options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    for option in options:
        if option is NoneType and value is None:
            return None
        if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
            return _build(option, value, origin, f"{key}.")  # type: ignore[arg-type]
        if get_origin(option) is tuple and isinstance(value, (list, tuple)):
            return _fit_tuple(value, get_args(option), origin, key)
        if get_origin(option) is dict and isinstance(value, Mapping):
            return dict(value)
        if option is float and (type(value) is float or (type(value) is int and _fits(value))):
            return float(value)
        if option in (str, int, bool) and type(value) is option:
            return value
    expected = " or ".join(_type_name(option) for option in options)
    message = f"{origin.of(key)}: '{key}' must be {expected}, not {value!r}."
    raise UserError(message, EXAMPLE_HINT)


def _fits(number: int) -> bool:
    return abs(number) <= sys.float_info.max


def _fit_tuple(value: Any, hints: tuple[Any, ...], origin: Origin, key: str) -> tuple[Any, ...]:
    """Return the list `value` as a tuple, each member fitted."""
    if hints[-1] is Ellipsis:
        hints = (hints[0],) * len(value)
    if len(hints) != len(value):
        message = f"{origin.of(key)}: '{key}' must have {len(hints)} members, not {value!r}."
        raise UserError(message, EXAMPLE_HINT)
    pairs = zip(value, hints, strict=True)
    return tuple(_fit(v, h, origin, f"{key}[{i}]") for i, (v, h) in enumerate(pairs))


def _type_name(hint: Any) -> str:
    if hint is NoneType:
        return "None"
    if get_origin(hint) is tuple:
        return "a list"
    if get_origin(hint) is dict or dataclasses.is_dataclass(hint):
        return "a dict(...)"
    return TYPE_NAMES[hint]


def _check_together(settings: Settings, origin: Origin) -> None:
    """Check what no single key can show."""
    for fault in FAULTS:
        if fault.wrong(settings):
            raise UserError(f"{origin.of(fault.key)}: {fault.message}", fault.hint)
