"""Tiny models of the real architectures with random weights, and tokenizers trained on the spot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llava_tools.model.projector import Projector

IMAGE_SIZE, PATCH = 28, 14
NUM_PATCHES = (IMAGE_SIZE // PATCH) ** 2
PHI3_TOKENS = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
LLAMA3_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "USER: What is in the picture? ASSISTANT: A red square and two blue circles.",
    "Answer with the option's letter from the given choices directly.\nA. one\nB. two\n",
    "system user assistant zero one two three four five six seven eight nine cat dog",
] * 3


def sentencepiece_style() -> Tokenizer:
    """BPE over `▁` pieces with byte fallback, as Llama-2, Vicuna and Phi-3 have."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(state))


def byte_level() -> Tokenizer:
    """Byte-level BPE, as Llama-3 and Qwen have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def save_tokenizer(folder: Path, family: str) -> int:
    """Write the tokenizer of `family` (phi3, llama3 or vicuna); return its vocabulary size."""
    tokenizer = byte_level() if family == "llama3" else sentencepiece_style()
    added = {"phi3": PHI3_TOKENS, "llama3": LLAMA3_TOKENS, "vicuna": []}[family]
    tokenizer.add_special_tokens(added)
    bos, eos, pad = {
        "phi3": ("<s>", "<|endoftext|>", "<|endoftext|>"),
        "llama3": ("<|begin_of_text|>", "<|end_of_text|>", None),
        "vicuna": ("<s>", "</s>", "<unk>"),
    }[family]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos}
    settings |= {"pad_token": pad} if pad else {}
    settings |= {"model_max_length": 512, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer.get_vocab_size()


def save_llm(folder: Path, family: str = "phi3", *, kv_heads: int = 4, seed: int = 0) -> Path:
    """Write a 2-layer LLM with its tokenizer; `family` is phi3, llama3 or vicuna."""
    vocab = save_tokenizer(folder, family)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    ids = {
        "bos_token_id": tokenizer.token_to_id(settings["bos_token"]),
        "eos_token_id": tokenizer.token_to_id(settings["eos_token"]),
        "pad_token_id": tokenizer.token_to_id(settings.get("pad_token") or settings["eos_token"]),
    }
    common = dict(
        num_key_value_heads=kv_heads,
        vocab_size=vocab + 3,
        max_position_embeddings=512,
        **sizes,
        **ids,
    )
    torch.manual_seed(seed)
    if family == "phi3":
        model = Phi3ForCausalLM(
            Phi3Config(original_max_position_embeddings=512, sliding_window=None, **common)
        )
    else:
        theta = 500000.0 if family == "llama3" else 10000.0
        model = LlamaForCausalLM(
            LlamaConfig(rope_parameters={"rope_theta": theta, "rope_type": "default"}, **common)
        )
    model.save_pretrained(folder)
    return folder


def save_vision(folder: Path, kind: str = "clip", *, seed: int = 1) -> Path:
    """Write a 3-layer tower (`clip` or `siglip`) with its preprocessor_config.json."""
    sizes = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2)
    torch.manual_seed(seed)
    if kind == "clip":
        tower = CLIPVisionModel(CLIPVisionConfig(image_size=IMAGE_SIZE, patch_size=PATCH, **sizes))
    else:
        tower = SiglipVisionModel(
            SiglipVisionConfig(image_size=IMAGE_SIZE, patch_size=PATCH, **sizes)
        )
    tower.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSORS[kind]))
    return folder


PREPROCESSORS = {
    "clip": {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": IMAGE_SIZE},
    },
    "siglip": {
        "image_processor_type": "SiglipImageProcessor",
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    },
}


def save_images(folder: Path, count: int = 4) -> list[str]:
    """Write `count` small pictures of different shapes and colours; return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for i in range(count):
        image = Image.new(
            "RGB", (40 + 7 * i, 30 + 5 * (i % 3)), (60 * i % 256, 90, 255 - 50 * i % 256)
        )
        image.paste((255, 255, 0), (5, 5, 15 + i, 20))
        image.save(folder / f"{i}.png")
        names.append(f"{i}.png")
    return names


def llava_rows(images: list[str]) -> list[dict[str, object]]:
    """LLaVA rows: one with an image per name (the first has two turns) and two without."""
    rows: list[dict[str, object]] = []
    for i, name in enumerate(images):
        turns = [
            {"from": "human", "value": "<image>\nWhat is in the picture?"},
            {"from": "gpt", "value": f"A red square number {i}."},
        ]
        if i == 0:
            turns += [
                {"from": "human", "value": "And what else?"},
                {"from": "gpt", "value": "Two blue circles."},
            ]
        rows.append({"id": i, "image": name, "conversations": turns})
    for i in range(2):
        turns = [
            {"from": "human", "value": "one or two?"},
            {"from": "gpt", "value": "two" * (i + 1)},
        ]
        rows.append({"id": f"text-{i}", "conversations": turns})
    return rows


def save_xtuner(folder: Path, parts: Path, family: str = "phi3", tower: str = "clip") -> Path:
    """Write a complete model in the xtuner format, with a random projector."""
    shutil.copytree(parts / family, folder)
    shutil.copytree(parts / tower, folder / "visual_encoder")
    torch.manual_seed(5)
    projector = Projector(24, 32)
    (folder / "projector").mkdir()
    (folder / "projector" / "config.json").write_text(json.dumps(projector.to_config()))
    save_file(projector.state_dict(), folder / "projector" / "model.safetensors")
    return folder
