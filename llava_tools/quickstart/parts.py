"""The parts to start from: a tokenizer trained on the spot, a tiny Phi-3 and a tiny CLIP ViT.

Architectures, file layout and chat format are those of the real models; the sizes are such that
two CPU cores train them from scratch in minutes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from llava_tools.quickstart.digits import SIDE

# Phi-3's control tokens, which follow the text tokens.
CONTROL = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
VOCABULARY = 600  # at most; the texts of the digits need fewer
POSITIONS = 512
WIDTH = 64
LAYERS = 2
HEADS = 8
TOWER_LAYERS = 3  # the last one is not used: LLaVA takes the last but one
PATCH = 16  # an image is 2 x 2 patches: few tokens, and each sees whole strokes
# Wider than Phi-3's 0.02, which is for thousands of channels: with so few, attention would be
# nearly uniform at first, and the model would take long to find out that it can look things up.
INITIALIZER_RANGE = 0.08

PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": SIDE},
}


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train a BPE tokenizer built as Phi-3's: `▁` for spaces, bytes for unknown characters.

    It learns merges inside words only (as SentencePiece does), and keeps a sentence's last mark
    apart from its last word: a word is the same token wherever it stands.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "merged_with_next"),
            pre_tokenizers.Split(Regex(r"(?<=[a-z])[.?]"), "isolated"),
            pre_tokenizers.Split("▁", "merged_with_next"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    first = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=first + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str())
    # The merges know the cuts now, and the bytes are plain pieces in Phi-3's file.
    state["pre_tokenizer"] = None
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in first]
    finished = Tokenizer.from_str(json.dumps(state))
    finished.add_special_tokens(list(CONTROL))
    return finished


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write the tokenizer's files as Phi-3 has them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<unk>",
        "model_max_length": POSITIONS,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def write_llm(folder: Path, tokenizer: Tokenizer, seed: int) -> None:
    """Write a Phi-3 with random weights, and its tokenizer."""
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    write_tokenizer(folder, tokenizer)
    end = tokenizer.token_to_id("<|endoftext|>")
    config = Phi3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=POSITIONS,
        original_max_position_embeddings=POSITIONS,
        sliding_window=None,
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=tokenizer.token_to_id("<s>"),
        eos_token_id=end,
        pad_token_id=end,
    )
    torch.manual_seed(seed)
    _write_model(folder, Phi3ForCausalLM(config))


def write_tower(folder: Path, seed: int) -> None:
    """Write a CLIP vision tower with random weights, and its preprocessing."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        image_size=SIDE,
        patch_size=PATCH,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=4,
    )
    torch.manual_seed(seed + 1)
    _write_model(folder, CLIPVisionModel(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2))


def _write_model(folder: Path, model: Any) -> None:
    """Write config and weights; `save_pretrained` would add a progress bar and load DeepSpeed."""
    from safetensors.torch import save_file

    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
