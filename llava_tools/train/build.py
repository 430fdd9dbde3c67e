"""The model of a training run: load the parts, freeze, add LoRA, take up earlier weights."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava_tools.config import Settings
from llava_tools.data.codec import codec_of
from llava_tools.data.images import ImageProcessor
from llava_tools.data.prepare import Limits
from llava_tools.data.templates import check_template, get_template
from llava_tools.errors import UserError
from llava_tools.model.base_mark import saved_mark
from llava_tools.model.llava import LlavaModel
from llava_tools.model.load import (
    draw_llm,
    load_image_processor,
    load_llm,
    load_llm_config,
    load_tokenizer,
)
from llava_tools.model.openers import checkpoint_path
from llava_tools.model.projector import Projector
from llava_tools.model.source import read_checkpoint
from llava_tools.model.vision import VisualEncoder, load_visual_encoder, read_num_patches
from llava_tools.train.bases import check_bases
from llava_tools.train.place import set_dtype

log = logging.getLogger(__name__)

HEADS = {"lm_head", "output_layer"}  # output layers, which LoRA leaves alone (XTuner's rule)


def build_tokenizer(settings: Settings) -> Any:
    """Load the LLM's tokenizer; the template must fit it."""
    tokenizer = load_tokenizer(
        settings.llm_name_or_path, trust_remote_code=settings.trust_remote_code
    )
    check_template(get_template(settings.prompt_template), tokenizer)
    return tokenizer


def check_vocabulary(settings: Settings, tokenizer: Any) -> None:
    """Check that the LLM has embeddings of the tokens that the template writes.

    Raises UserError: tokens may have been added to a tokenizer, and the model left as it was.
    """
    config = load_llm_config(
        settings.llm_name_or_path, trust_remote_code=settings.trust_remote_code
    )
    rows = getattr(config, "vocab_size", None)
    codec, template = codec_of(tokenizer), get_template(settings.prompt_template)
    own = str(getattr(tokenizer, "chat_template", "")) if template.from_tokenizer else ""
    texts = [*template.control, *codec.token_texts.values()]
    texts += [text for text in codec.control_tokens if text in own]
    for text in texts:
        number = codec.control_tokens.get(text)
        if rows and number is not None and number >= rows:
            raise UserError(
                f"'{settings.llm_name_or_path}' has {rows} embeddings, but '{text}' of the prompt "
                f"template '{settings.prompt_template}' is token {number}.",
                "Call resize_token_embeddings(len(tokenizer)) on the model and save it, or choose "
                "another prompt_template.",
            )


def build_image_processor(settings: Settings) -> ImageProcessor | None:
    """Load the tower's preprocessing; None for a text-only run."""
    name = settings.visual_encoder_name_or_path
    return load_image_processor(name) if name else None


def build_limits(settings: Settings) -> Limits:
    """Read from the configs how many positions the LLM has and how many an image takes."""
    config = load_llm_config(
        settings.llm_name_or_path,
        trust_remote_code=settings.trust_remote_code,
        max_position_embeddings=settings.max_position_embeddings,
    )
    tower = settings.visual_encoder_name_or_path
    context = getattr(config, "max_position_embeddings", None)
    return Limits(context, read_num_patches(tower) if tower else 1)


def build_model(settings: Settings) -> LlavaModel:
    """Load the parts, freeze what the settings freeze, add LoRA, load `pretrained_pth`.

    A fresh projector is drawn from `settings.seed`, on every rank alike.
    """
    torch.manual_seed(settings.seed)
    frozen_kind = torch.bfloat16 if settings.dtype == "bf16" else torch.float32
    load = draw_llm if settings.llm_from_scratch else load_llm
    llm = load(
        settings.llm_name_or_path,
        dtype=frozen_kind if settings.freeze_llm else torch.float32,
        trust_remote_code=settings.trust_remote_code,
        max_position_embeddings=settings.max_position_embeddings,
        quantization=settings.llm_quantization,
    )
    tower = projector = None
    if settings.visual_encoder_name_or_path:
        tower = load_visual_encoder(settings.visual_encoder_name_or_path)
        if settings.freeze_visual_encoder:  # two bytes a value, not a master copy's four
            set_dtype(tower, frozen_kind)
        sizes = tower.config.hidden_size, llm.get_input_embeddings().embedding_dim
        projector = Projector(*sizes, depth=settings.projector_depth)
        _check_select_layer(tower, settings.visual_select_layer)
    model = LlavaModel(llm, tower, projector, settings.visual_select_layer)
    choose_what_trains(model, settings)
    if settings.pretrained_pth:
        load_pretrained(model, settings.pretrained_pth)
        mark = saved_mark(checkpoint_path(Path(settings.pretrained_pth)))
        check_bases(settings, mark, f"pretrained_pth '{settings.pretrained_pth}'")
    if settings.activation_checkpointing:
        checkpoint_activations(model)
    return model


def _check_select_layer(tower: VisualEncoder, layer: int) -> None:
    depth = tower.config.num_hidden_layers
    if not -depth - 1 <= layer <= depth:
        raise UserError(
            f"visual_select_layer = {layer}, but the vision tower has {depth} blocks.",
            f"Choose between {-depth - 1} and {depth}; LLaVA's choice is -2.",
        )


def choose_what_trains(model: LlavaModel, settings: Settings) -> None:
    """Freeze what the settings freeze and add LoRA."""
    model.llm.requires_grad_(not settings.freeze_llm and not settings.llm_lora)
    if settings.llm_lora:
        model.llm = add_lora(model.llm, settings.llm_lora)
    if model.visual_encoder is not None:
        lora = settings.visual_encoder_lora
        model.visual_encoder.requires_grad_(not settings.freeze_visual_encoder and not lora)
        if lora:
            model.visual_encoder = add_lora(model.visual_encoder, lora)


def add_lora(part: Any, options: dict[str, Any]) -> Any:
    """Wrap a part in peft's LoRA; without `target_modules`, on every linear layer but the head.

    Raises UserError for modules that the part does not have.
    """
    from peft import LoraConfig, get_peft_model

    targets = options.get("target_modules") or linear_names(part)
    _check_targets(part, targets)
    _check_whole(part, options.get("modules_to_save") or ())
    with warnings.catch_warnings():  # peft asks transformers by a name that it is about to drop
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(part, LoraConfig(**{**options, "target_modules": targets}))


def _check_targets(part: nn.Module, targets: Any) -> None:
    """Each target must be a linear layer; peft leaves out those it does not find, untold."""
    if targets == "all-linear":
        return
    layers = [name for name, module in part.named_modules() if isinstance(module, nn.Linear)]
    if isinstance(targets, str):  # peft takes a text for a pattern of whole names
        absent = [] if any(_matches(targets, name) for name in layers) else [targets]
    else:
        dotted = [f".{name}" for name in layers]
        absent = [t for t in targets if not any(name.endswith(f".{t}") for name in dotted)]
    if absent:
        raise UserError(
            f"LoRA's target_modules name no linear layer of {type(part).__name__}: "
            f"{', '.join(absent)}.",
            f"Its linear layers: {', '.join(linear_names(part))}. "
            "Without target_modules, LoRA is put on all of them.",
        )


def _check_whole(part: nn.Module, modules: Sequence[str]) -> None:
    """Each must end the name of a module, one that can be trained: peft says nothing, or fails."""
    known = dict(part.named_modules())
    for wanted in modules:
        found = [module for name, module in known.items() if name.endswith(wanted)]
        if not found:
            last = {name.split(".")[-1] for name in known} - {""}
            raise UserError(
                f"LoRA's modules_to_save name no part of {type(part).__name__}: {wanted}.",
                f"Its parts: {', '.join(sorted(n for n in last if not n.isdigit()))}.",
            )
        if not all(p.is_floating_point() for module in found for p in module.parameters()):
            raise UserError(
                f"LoRA's modules_to_save name {wanted}, whose weights llm_quantization packs.",
                "Leave it out (it can have factors instead), or train without llm_quantization.",
            )


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise UserError(
            f"LoRA's target_modules = '{pattern}' is no regular expression: {error}.",
            "Give a list of layer names instead.",
        ) from error


def linear_names(part: nn.Module) -> list[str]:
    """Return the last name components of all linear layers of a part, without output heads."""
    names = {n.split(".")[-1] for n, m in part.named_modules() if isinstance(m, nn.Linear)}
    return sorted(names - HEADS)


def load_pretrained(model: LlavaModel, path: str) -> None:
    """Load the weights of an earlier stage; each must fit, and there must be some.

    Raises UserError for a checkpoint of another model, instead of training from scratch silently.
    """
    state = model.state_dict()
    tensors = read_checkpoint(path)
    unknown = sorted(set(tensors) - set(state))
    wrong = [n for n, t in tensors.items() if n in state and state[n].shape != t.shape]
    for problem, names in (("unknown to", unknown), ("of another shape in", wrong)):
        if names:
            raise UserError(
                f"pretrained_pth '{path}' has {len(names)} weights {problem} this model, "
                f"for example {names[0]}.",
                "Name a checkpoint that was trained with the same LLM, vision tower and projector.",
            )
    if not tensors:
        raise UserError(f"pretrained_pth '{path}' holds no weights.", "Name another checkpoint.")
    lost = sorted({n.split(".")[0] for n in tensors.keys() - model.trained_state_dict().keys()})
    if lost:
        raise UserError(
            f"pretrained_pth '{path}' holds weights of the {' and '.join(lost)}, which this run "
            "freezes: its checkpoints would be laid over the base's instead.",
            f"First convert it (llava-tools convert {path} DIR --to xtuner), and name what is in "
            "DIR as the config's models; or train that part.",
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor.read())
    parts = sorted({name.split(".")[0] for name in tensors})
    log.info("Loaded %d weights of %s from %s", len(tensors), " and ".join(parts), path)


def checkpoint_activations(model: LlavaModel) -> None:
    """Recompute the activations of the LLM and the tower in the backward pass."""
    tower: Any = model.visual_encoder
    for part in (model.llm, None if tower is None else tower.vision_model):
        if part is not None:
            name = "activation_checkpointing_enable"  # `gradient_...` before transformers 5.6
            enable = getattr(part, name, None) or part.gradient_checkpointing_enable
            enable()
