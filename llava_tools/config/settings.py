"""The settings of a run: two frozen dataclasses, the names of an XTuner config's settings part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DatasetSpec:
    """One data file of a run, or a folder of them; several are laid end to end."""

    data_path: str
    image_folder: str = ""
    format: str = "auto"  # by the keys of the first rows, or a name of data/formats.py
    pad_image_to_square: bool = False
    follow_links: bool = False  # images may lie behind links that lead out of image_folder
    max_rows: int | None = None  # a seeded sample without replacement
    first_rows: int | None = None  # the first rows that can be trained on, as many as that
    weight: float = 1.0  # how often a row is seen in an epoch; of 2.5 the half by a seeded draw
    max_tokens: int | None = None  # longer rows are left out (max_length cuts them instead)
    keep_system: bool = True  # False: the rows' system texts are dropped
    first_round: bool = False  # of a dialogue, only the first question and answer
    train_on: str | None = None  # what of these rows is trained on; None: as the run's train_on
    rows: int | None = None  # the published row count: planning needs no file then


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run. `config.check` makes one from a config and checks it."""

    llm_name_or_path: str
    prompt_template: str
    datasets: tuple[DatasetSpec, ...]

    visual_encoder_name_or_path: str | None = None  # None: text-only fine-tuning
    projector_depth: int = 2
    visual_select_layer: int = -2
    freeze_llm: bool = False
    freeze_visual_encoder: bool = True
    llm_lora: dict[str, Any] | None = None
    visual_encoder_lora: dict[str, Any] | None = None
    llm_quantization: dict[str, Any] | None = None  # a frozen LLM in 4 or 8 bits (bitsandbytes)
    pretrained_pth: str | None = None
    max_position_embeddings: int | None = None
    llm_from_scratch: bool = False  # the LLM's config alone is read; its weights are drawn anew
    norm_fp32: bool = False  # norms of a frozen LLM in fp32, as peft prepares for QLoRA
    activation_checkpointing: bool = True
    trust_remote_code: bool = False
    liger: bool = True  # Liger's kernels, on a GPU where they are installed
    compile: bool = False  # torch.compile for the LLM's layers, on a GPU

    max_length: int = 2048  # an image counts as one token here: 2048 - 576 = 1472 at 336 pixels
    tokenized_folder: str | None = None  # written by `data tokenize`: nothing is tokenised again
    padding_free: bool = True  # a batch's rows lie end to end; False pads them to the longest
    packing: bool = False  # a row of the batch is several rows that fill max_length
    chunks: bool = False  # texts longer than max_length are cut into rows of it, not cut off
    keep_tails: bool = True  # of chunks: the last, short one of a text
    sampler: str = "shuffle"
    num_workers: int = 4
    train_on: str = "all"  # answers; "last": the last one of a row; "full": questions, too
    fastchat_compat: bool = False  # leave out the rows that FastChat masks (vicuna_v1.1)
    max_skipped: float = 0.01  # the share of rows that may be skipped

    batch_size: int = 1  # rows per device and micro-batch
    accumulative_counts: int = 1
    max_epochs: int = 1
    lr: float = 2e-5
    lr_schedule: str = "cosine"  # cosine, linear (both to zero) or constant
    warmup_ratio: float = 0.03  # of all optimizer steps
    warmup_steps: int | None = None  # a number of them instead
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    decay_bias_and_norm: bool = True  # False: weight_decay leaves vectors (biases, norms) alone
    max_norm: float = 1.0
    dtype: str = "bf16"
    loss_reduction: str = "token"

    save_steps: int = 500  # in micro-batches, as the N of iter_N.pth; 0: only at the end
    save_total_limit: int = 2
    eval_datasets: tuple[DatasetSpec, ...] = ()  # held-out data: its loss is logged as eval_loss
    eval_share: float = 0.0  # of the rows of `datasets`, held out of the training for that
    eval_rows: int | None = None  # a number of them instead
    eval_steps: int = 0  # in micro-batches; 0: held-out data, if any, is looked at in the end
    evaluation_freq: int = 500  # in micro-batches; 0: no sample answers
    evaluation_images: tuple[str, ...] = ()
    evaluation_inputs: tuple[str, ...] = ()
    system: str = ""
    log_interval: int = 10
    report_to: tuple[str, ...] = ("auto",)  # trackers; auto is TensorBoard where installed
    seed: int = 0
    work_dir: str | None = None


@dataclass(frozen=True)
class LoraSpec:
    """What a `llm_lora` or `visual_encoder_lora` dict may hold (peft's own names)."""

    r: int = 8
    lora_alpha: int = 8
    lora_dropout: float = 0.0
    bias: str = "none"
    target_modules: tuple[str, ...] | str | None = None  # None: every linear layer but the head
    modules_to_save: tuple[str, ...] | None = None


@dataclass(frozen=True)
class QuantizationSpec:
    """What a `llm_quantization` dict may hold; the defaults are QLoRA's (arXiv 2305.14314)."""

    bits: int = 4
    quant_type: str = "nf4"  # nf4 or fp4, for 4 bits
    double_quant: bool = True
