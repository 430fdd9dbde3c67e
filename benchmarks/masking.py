"""How fast rows are rendered with their masks: rows a second of one core's CPU time.

The rows have the lengths of real data: dialogues of two, four or six short messages (160 characters
each, a third of each kind), one question with an answer as Alpaca's (790 characters), and long
dialogues of about 1,500 tokens. Their words come by a seed from 40,000, as unevenly as in English:
of 125,000 words 26,000 differ (in Alpaca's 23,000). Each kind is rendered by a codec that has seen
no text (`first`) and again; the peer is the tokenizers library on the bare texts, without a mask.
The vocabulary is trained on the spot, 4,000 pieces, in Llama-2's or in GPT-2's manner.

    python benchmarks/masking.py [--rows N]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llava_tools.data.codec import Codec
from llava_tools.data.render import render
from llava_tools.data.sample import Turn
from llava_tools.data.templates import get_template

LETTERS = "etaoinshrdlucmfwypvbgk"
TEMPLATES = ("vicuna_v1.1", "alpaca", "llama-2", "chatml", "vicuna", "llama2_chat")
KNOWN = 40_000
# Messages of a dialogue, and characters of a user's and of an assistant's message.
SHAPES = {
    "dialogues": ([2, 4, 6], (40, 40)),
    "instructions": ([2], (86, 702)),
    "long": ([6, 8, 10], (750, 750)),
}


def words(count: int, rng: random.Random) -> list[str]:
    """Make words as long as English ones."""
    return [
        "".join(rng.choices(LETTERS, k=rng.choice([2, 3, 3, 4, 5, 7, 9]))) for _ in range(count)
    ]


class Writer:
    """Writes texts of words that are as uneven as in English, some with a comma behind them."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._words = words(KNOWN, random.Random(0))
        self._weights = list(accumulate(1 / (k + 2) for k in range(KNOWN)))

    def text(self, size: int) -> str:
        """Return a text of about `size` characters."""
        count = max(1, round(self._rng.gauss(size, size / 3) / 5.5))
        said = self._rng.choices(self._words, cum_weights=self._weights, k=count)
        return " ".join(w if self._rng.random() > 0.15 else f"{w}," for w in said) + "."

    def dialogues(
        self, count: int, messages: list[int], sizes: tuple[int, int]
    ) -> list[list[Turn]]:
        """Return dialogues of so many messages, as the user and the assistant in turn write."""
        roles = ("user", "assistant")
        return [
            [
                Turn(roles[n % 2], self.text(sizes[n % 2]))
                for n in range(messages[k % len(messages)])
            ]
            for k in range(count)
        ]


def tokenizer(kind: str) -> Any:
    """Train a vocabulary of 4,000 pieces."""
    writer = Writer(1)
    texts = [writer.text(200) for _ in range(500)]
    texts += ["A chat between a curious user and an artificial intelligence assistant."] * 9
    texts += ["The assistant gives helpful, detailed, and polite answers. USER: ASSISTANT:"] * 9
    special = ["<unk>", "<s>", "</s>"]
    if kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    else:
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        space = normalizers.Replace(" ", "▁")
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
        made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=4000, special_tokens=special, show_progress=False)
    made.train_from_iterator(texts, trainer)
    if kind == "legacy":
        made.pre_tokenizer = None  # as Llama-2's tokenizer.json: each text is one word
    state = json.loads(made.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["id"] < 3]
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **names)


def measure(rows: list[list[Turn]], name: str, tokenizer: Any) -> dict[str, float]:
    """Return rows a second of CPU time: first, again (best of three), and the peer's."""
    template, codec = get_template(name), Codec(tokenizer)
    render([Turn("user", "?"), Turn("assistant", "!")], template, codec)
    rates = [rate(rows, lambda row: render(row, template, codec, 2048)) for _ in range(4)]
    texts = [" ".join(turn.text for turn in row) for row in rows]
    encode = tokenizer.backend_tokenizer.encode
    alone = [rate(texts, lambda text: encode(text, add_special_tokens=False).ids) for _ in range(3)]
    return {"first": rates[0], "again": max(rates), "peer": max(alone)}


def rate(rows: list[Any], work: Callable[[Any], object]) -> float:
    """Return how many rows a second of CPU time are worked on."""
    start = time.process_time()
    for row in rows:
        work(row)
    return len(rows) / (time.process_time() - start)


def main() -> None:
    """Print a line a tokenizer, template and kind of rows, and what the slowest does."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=2000, help="a tenth of it for long rows")
    count = parser.parse_args().rows
    writer = Writer(1)
    kinds = {
        name: writer.dialogues(count // (10 if name == "long" else 1), *shape)
        for name, shape in SHAPES.items()
    }
    kinds["with </s>"] = [
        [Turn(turn.role, f"{turn.text} </s> <s>") for turn in row] for row in kinds["dialogues"]
    ]
    slowest: dict[str, float] = {}
    print(f"{'':29}{'first rows/s':>15}{'again':>10}{'tokenizers alone':>18}")
    for family in ("legacy", "bytes"):
        made = tokenizer(family)
        for name in TEMPLATES:
            for kind, rows in kinds.items():
                found = measure(rows, name, made)
                slowest[kind] = min(found["again"], slowest.get(kind, found["again"]))
                print(f"{family:7}{name:12}{kind:13}{found['first']:12,.0f}", end="")
                print(f"{found['again']:10,.0f}{found['peer']:18,.0f}", flush=True)
    said = ", ".join(f"{kind} {rows:,.0f}" for kind, rows in slowest.items())
    print(f"The slowest, rows a second of one core (wanted: 5,000): {said}")


if __name__ == "__main__":
    main()
