"""The flags of FastChat's, LLaVA's and transformers' trainers, and what they are here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# What those trainers do where a command line says nothing.
DEFAULTS: dict[str, Any] = dict(
    llm_name_or_path="facebook/opt-125m", prompt_template="vicuna_v1.1", max_length=512, lr=5e-5,
    lr_schedule="linear", max_epochs=3, batch_size=8, accumulative_counts=1, warmup_ratio=0.0,
    save_steps=500, save_total_limit=1000000, log_interval=500, seed=42, report_to=["auto"],
    activation_checkpointing=False,
)  # fmt: skip

RENAMED: dict[str, tuple[str, Callable[[str], Any]]] = {
    "model_name_or_path": ("llm_name_or_path", str),
    "model_max_length": ("max_length", int),
    "num_train_epochs": ("max_epochs", int),
    "per_device_train_batch_size": ("batch_size", int),
    "gradient_accumulation_steps": ("accumulative_counts", int),
    "learning_rate": ("lr", float),
    "weight_decay": ("weight_decay", float),
    "warmup_ratio": ("warmup_ratio", float),
    "max_grad_norm": ("max_norm", float),
    "save_steps": ("save_steps", int),
    "save_total_limit": ("save_total_limit", int),
    "logging_steps": ("log_interval", int),
    "seed": ("seed", int),
    "output_dir": ("work_dir", str),
    "dataloader_num_workers": ("num_workers", int),
    "gradient_checkpointing": ("activation_checkpointing", bool),
    "activation_checkpointing": ("activation_checkpointing", bool),
    "torch_compile": ("compile", bool),
    "use_liger_kernel": ("liger", bool),
    "trust_remote_code": ("trust_remote_code", bool),
    "pretrain_mm_mlp_adapter": ("pretrained_pth", str),
    "mm_vision_select_layer": ("visual_select_layer", int),
}
LORA: dict[str, tuple[str, Callable[[str], Any]]] = {
    "lora_r": ("r", int),
    "lora_alpha": ("lora_alpha", int),
    "lora_dropout": ("lora_dropout", float),
    "lora_bias": ("bias", str),
    "lora_target_modules": ("target_modules", str),
    "q_lora": ("", bool),
    "lora_enable": ("", bool),
}
LORA_DEFAULTS: dict[str, Any] = dict(
    r=8, lora_alpha=16, lora_dropout=0.05, bias="none", target_modules=["q_proj", "v_proj"]
)
SPECIAL = {
    *("data_path", "eval_data_path", "evaluation_strategy", "eval_strategy", "eval_steps"),
    *("save_strategy", "warmup_steps", "lr_scheduler_type", "optim", "adam_beta1", "adam_beta2"),
    *("bf16", "fp16", "report_to", "group_by_length", "group_by_modality_length", "bits"),
    *("version", "vision_tower", "image_folder", "image_aspect_ratio", "mm_projector_type"),
    *("tune_mm_mlp_adapter", "freeze_backbone", "train_ratio", "last_response_loss"),
}
SCHEDULES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf"), "adamw"),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit"), "adamw_8bit"),
    **dict.fromkeys(("paged_adamw_8bit",), "paged_adamw_8bit"),
    **dict.fromkeys(("paged_adamw", "paged_adamw_32bit"), "paged_adamw_32bit"),
}
TEMPLATES = {"v1": "llava_v1", "plain": "plain"}

_SHARDED = "add --deepspeed deepspeed_zero3 to `llava-tools train`, which cuts weights as well."
_OWN = "not needed here."
_NOT = "not applied here."
_HUB = "`llava-tools push` sends a finished model or adapter."
_LOG = "log.jsonl, the trackers and samples.jsonl lie in the work dir; log_interval says how often."
_EVAL = "the loss on held-out rows is what is computed, at eval_steps and in the end."
REPLACED = {
    **dict.fromkeys(
        ("do_train", "do_eval", "do_predict", "local_rank", "ddp_find_unused_parameters",
         "ddp_timeout", "ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb",
         "ddp_static_graph", "remove_unused_columns", "save_safetensors", "disable_tqdm",
         "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs", "save_only_model",
         "is_multimodal", "dataloader_pin_memory", "dataloader_drop_last", "dataloader_in_order",
         "dataloader_persistent_workers", "dataloader_prefetch_factor", "split_batches",
         "dataloader_multiprocessing_context", "dispatch_batches", "half_precision_backend",
         "fp16_opt_level", "fp16_backend", "use_fast", "use_cache", "label_names",
         "length_column_name",
         "average_tokens_across_devices", "skip_memory_metrics", "torch_empty_cache_steps",
         "save_on_each_node", "include_tokens_per_second", "include_num_input_tokens_seen",
         "no_cuda", "use_cpu", "use_mps_device", "use_ipex", "jit_mode_eval", "ray_scope",
         "mp_parameters", "past_index", "debug", "xpu_backend", "tpu_num_cores",
         "tpu_metrics_debug", "use_legacy_prediction_loop", "prediction_loss_only",
         "logging_nan_inf_filter", "enable_jit_checkpoint",
         "mm_vision_select_feature", "mm_patch_merge_type", "efficient_loss",
         "split_example_loss"),
        _OWN,
    ),
    **dict.fromkeys(
        ("label_smoothing_factor", "neftune_noise_alpha", "lr_scheduler_kwargs", "optim_args",
         "optim_target_modules", "full_determinism", "liger_kernel_config", "mpt_attn_impl",
         "torch_compile_backend", "torch_compile_mode", "torchdynamo", "num_data",
         "freeze_mm_mlp_adapter"),
        _NOT,
    ),
    **dict.fromkeys(
        ("push_to_hub", "push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token",
         "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push",
         "hub_revision"),
        _HUB,
    ),
    **dict.fromkeys(
        ("run_name", "logging_dir", "logging_strategy", "logging_first_step", "log_level",
         "log_level_replica", "log_on_each_node", "project", "trackio_space_id",
         "trackio_bucket_id", "trackio_static_space_id"),
        _LOG,
    ),
    **dict.fromkeys(
        ("metric_for_best_model", "greater_is_better", "include_for_metrics", "eval_delay",
         "include_inputs_for_metrics", "batch_eval_metrics", "eval_accumulation_steps",
         "eval_do_concat_batches", "eval_on_start", "eval_use_gather_object", "bf16_full_eval",
         "fp16_full_eval"),
        _EVAL,
    ),
    **dict.fromkeys(
        ("fsdp", "fsdp_config", "fsdp_transformer_layer_cls_to_wrap", "fsdp_min_num_params",
         "sharded_ddp", "accelerator_config", "parallelism_config"),
        _SHARDED,
    ),
    **dict.fromkeys(
        ("per_device_eval_batch_size", "per_gpu_eval_batch_size"),
        "held-out rows are read in batches of batch_size.",
    ),
    **dict.fromkeys(
        ("ignore_data_skip", "restore_callback_states_from_checkpoint"),
        "a resumed run goes on at its place in the data.",
    ),
    "max_steps": "max_epochs alone says how long; `llava-tools plan` counts its steps.",
    "adam_epsilon": "1e-8.",
    "adafactor": "optimizer = 'adamw'.",
    "data_seed": "seed decides the order of the data as well.",
    "per_gpu_train_batch_size": "batch_size, which --per_device_train_batch_size sets.",
    "lora_weight_path": "name it as pretrained_pth, or go on with `llava-tools train --resume`.",
    "deepspeed": "give it to `llava-tools train --deepspeed` (deepspeed_zero2, or your JSON).",
    "tf32": "dtype = 'bf16' computes in bf16, which is faster.",
    "lazy_preprocess": "small files are tokenised at the start, large ones while training.",
    "cache_dir": "set HF_HOME in the environment.",
    "padding_side": "rows are laid end to end, without padding.",
    "overwrite_output_dir": "a work dir with a run in it is refused: --resume, or another one.",
    "resume_from_checkpoint": "give it to `llava-tools train --resume`.",
    "auto_find_batch_size": "`llava-tools plan` tells which batch_size fits; a batch that halves "
    "itself would shift the schedule.",
    "train_sampling_strategy": "sampler = 'shuffle' or 'length_grouped'.",
    "mm_projector_lr": "one lr for all that trains; it is not applied.",
    "mm_use_im_start_end": "images have no tokens around them.",
    "mm_use_im_patch_token": "images have no tokens around them.",
    "load_best_model_at_end": "log.jsonl has every eval_loss; pick the iter_N.pth you want.",
    "flash_attn": "used where it is installed.",
    "double_quant": "double quantisation is on.",
    "quant_type": "nf4; set llm_quantization for fp4.",
}  # fmt: skip
