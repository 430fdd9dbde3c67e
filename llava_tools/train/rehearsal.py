"""A training step rehearsed without storage: how many bytes are alive at its peak.

The model is built from its configs on fake tensors, which have shapes and dtypes but no memory, and
takes one micro-batch forward and backward. What torch allocates and frees on the way is added up.
So activation checkpointing, autocast's copies, LoRA and attention that keeps no matrix of scores
count as they really are, for any model. Attention's kernel is SDPA's flash kernel; rows are as long
as the longest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from llava_tools.config import Settings
from llava_tools.errors import UserError, first_line
from llava_tools.model.llava import LlavaModel
from llava_tools.model.load import load_llm_config
from llava_tools.model.projector import Projector
from llava_tools.model.vision import VisualEncoder, empty_tower
from llava_tools.train.build import checkpoint_activations, choose_what_trains
from llava_tools.train.flops import Workload, workload
from llava_tools.train.live import Live


@dataclass(frozen=True)
class Load:
    """A micro-batch: rows of one length in the LLM, images, supervised tokens."""

    rows: int
    length: int
    images: int
    supervised: int


@dataclass(frozen=True)
class PartSize:
    """Parameters of a part, those that train, and those of linear layers that may be quantised."""

    total: int
    trained: int
    linear: int
    largest: int  # of the linear layers


@dataclass(frozen=True)
class Rehearsal:
    """What a step needs: the parts' sizes, bytes at the peak (beside the weights), arithmetic."""

    parts: dict[str, PartSize]
    peak: dict[str, int]  # gradients, activations, logits
    work: Workload


def largest_load(settings: Settings, patches: int) -> Load:
    """Return the largest micro-batch that the settings allow.

    Every row has `max_length` tokens, one of them an image, and is supervised in all its text.
    """
    image = min(1, patches)
    length = settings.max_length + image * (patches - 1)
    text = settings.max_length - image
    rows = settings.batch_size
    return Load(rows, length, rows * image, rows * text)


def rehearse(settings: Settings, load: Load | None = None, *, sharded: bool = False) -> Rehearsal:
    """Rehearse a step of `load` (by default the settings' largest).

    `sharded`: as under DeepSpeed, all parameters are in the settings' dtype and a gradient is
    handed on as soon as it is there. Otherwise what trains is fp32, its arithmetic autocast.

    Raises UserError for a model whose config is not at hand, or that cannot run without storage.
    """
    model = build_empty(settings)
    bf16 = settings.dtype == "bf16"
    frozen = torch.bfloat16 if bf16 else torch.float32
    with FakeTensorMode():
        put_on_cpu(model, trained=frozen if sharded else torch.float32, frozen=frozen)
        parts = part_sizes(model)
        if load is None:
            load = largest_load(settings, model.num_patches)
        live = Live(model, hand_on=sharded, kept=settings.accumulative_counts > 1)
        try:
            with live, torch.autocast("cpu", torch.bfloat16, enabled=bf16 and not sharded):
                loss = _loss(model, load, live)
            with live:
                live.backward(loss)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            raise UserError(
                f"'{settings.llm_name_or_path}' cannot be rehearsed: {first_line(error)}",
                "Its memory is only seen by running it; log.jsonl tells peak_memory_bytes.",
            ) from error
        return Rehearsal(parts, live.at_peak, workload(model))


def build_empty(settings: Settings) -> LlavaModel:
    """Build the model of the settings from configs alone, on the meta device.

    Raises UserError for a config that is not at hand, and says how to get it.
    """
    names = (settings.llm_name_or_path, settings.visual_encoder_name_or_path)
    try:
        return _build_empty(settings)
    except UserError as error:
        absent = [name for name in names if name and f"'{name}'" in error.message]
        if not absent or Path(absent[0]).exists():
            raise
        raise UserError(
            error.message,
            f"Only its configs are needed: `hf download {absent[0]} config.json` gets them; "
            "or name a local folder with config.json.",
        ) from error


def _build_empty(settings: Settings) -> LlavaModel:
    config = load_llm_config(
        settings.llm_name_or_path,
        trust_remote_code=settings.trust_remote_code,
        max_position_embeddings=settings.max_position_embeddings,
    )
    with torch.device("meta"), no_init_weights():
        llm: Any = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=settings.trust_remote_code
        )
        llm.tie_weights()
        tower = projector = None
        if settings.visual_encoder_name_or_path:
            tower = VisualEncoder(empty_tower(settings.visual_encoder_name_or_path))
            sizes = tower.config.hidden_size, llm.get_input_embeddings().embedding_dim
            projector = Projector(*sizes, depth=settings.projector_depth)
        model = LlavaModel(llm, tower, projector, settings.visual_select_layer)
        choose_what_trains(model, settings)
    if settings.activation_checkpointing:
        checkpoint_activations(model)
    return model.train()


def put_on_cpu(model: nn.Module, *, trained: torch.dtype, frozen: torch.dtype) -> None:
    """Give every tensor of a model on the meta device a fake one on the CPU, as `place` would.

    Attention chooses its kernel, and autocast its dtypes, by the device.
    """
    made: dict[int, Any] = {}

    def fake(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if id(tensor) not in made:  # tied weights stay one
            empty = torch.empty(tensor.shape, dtype=dtype, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            kept = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
            made[id(tensor)] = kept, tensor
        result: torch.Tensor = made[id(tensor)][0]
        return result

    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                dtype = trained if parameter.requires_grad else frozen
                module._parameters[name] = fake(parameter, dtype)  # type: ignore[assignment]
        for tensors in (module._buffers, module.__dict__):
            for name, tensor in list(tensors.items()):
                if isinstance(tensor, torch.Tensor):
                    tensors[name] = fake(tensor, tensor.dtype)


def part_sizes(model: LlavaModel) -> dict[str, PartSize]:
    """Return the sizes of the parts that the model has."""
    found = {}
    for name in ("llm", "visual_encoder", "projector"):
        part = getattr(model, name)
        if part is None:
            continue
        head = part.get_output_embeddings() if name == "llm" else None
        linear = [
            m.weight.numel()
            for m in part.modules()
            if isinstance(m, nn.Linear) and m is not head and not m.weight.requires_grad
        ]
        found[name] = PartSize(
            sum(p.numel() for p in part.parameters()),
            sum(p.numel() for p in part.parameters() if p.requires_grad),
            sum(linear),
            max(linear, default=0),
        )
    return found


def _loss(model: LlavaModel, load: Load, live: Live) -> torch.Tensor:
    """Return the loss of rows of one length; the head's tensors go to the account of the logits."""
    positions, patches = load.rows * load.length, model.num_patches
    pixels = None
    if model.visual_encoder is not None and load.images:
        side = model.visual_encoder.config.image_size
        pixels = torch.zeros(load.images, 3, side, side)
    ids = torch.zeros(positions - load.images * patches, dtype=torch.long)
    embeds = model.embed(ids, torch.zeros(positions, dtype=torch.long), pixels)
    rows = embeds.view(load.rows, load.length, -1)
    each = max(1, load.supervised // load.rows)
    keep = {"logits_to_keep": torch.zeros(each, dtype=torch.long)} if model.keeps_logits else {}
    handle = model.llm.get_output_embeddings().register_forward_pre_hook(live.enter_head)
    logits = model.llm(inputs_embeds=rows, use_cache=False, **keep).logits
    handle.remove()
    logits = logits[:, :each].flatten(0, 1)
    targets = torch.zeros(logits.shape[0], dtype=torch.long)
    return model.cross_entropy(logits, targets)
