"""Tokenizer files and generation settings of an export, edited as JSON.

Saving a tokenizer through transformers writes class names and layouts that only that generation
reads, so files are copied and the few entries that must change are changed.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from llava_tools.constants import IMAGE_TOKEN
from llava_tools.converters.chat_template import fitting_chat_template
from llava_tools.converters.plain_tokenizer import plain_tokenizer, read_tokenizer
from llava_tools.data.templates import Template, get_template, guess_template
from llava_tools.errors import UserError
from llava_tools.model.source import Source
from llava_tools.model.weights import read_json

PAD_TOKEN = "<pad>"
FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja"),
)


def copy_tokenizer(source: Source, folder: Path) -> None:
    """Copy the tokenizer's files; only a class name that transformers 4 lacks is replaced."""
    held = [name for name in FILES if (source.tokenizer_dir / name).is_file()]
    if not {"tokenizer.json", "tokenizer.model"} & set(held):
        raise UserError(
            f"'{source.tokenizer_dir}' holds no tokenizer.",
            "It needs tokenizer.json or tokenizer.model; copy the whole folder of the LLM.",
        )
    for name in held:
        shutil.copyfile(source.tokenizer_dir / name, folder / name)
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    if settings.get("tokenizer_class") == "TokenizersBackend":
        _dump(path, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})


def add_image_tokens(source: Source, folder: Path) -> tuple[int, int]:
    """Add `<image>` and `<pad>` to the tokenizer files in `folder`; return their ids.

    Tokens that are there already keep their ids; new ones follow the highest id in use.
    """
    if not (folder / "tokenizer.json").is_file():
        (folder / "tokenizer.json").write_text(_built_tokenizer(source.tokenizer_dir), "utf-8")
    content = read_json(folder / "tokenizer.json")
    top = max(read_tokenizer(folder).get_vocab().values(), default=-1)
    added = content.setdefault("added_tokens", [])
    ids = {token["content"]: token["id"] for token in added}
    for token in (IMAGE_TOKEN, PAD_TOKEN):
        if token not in ids:
            top = ids[token] = top + 1
            added.append({"id": top, "content": token, **_FLAGS, "special": True})
    _plain_merges(content.get("model") or {})
    _dump(folder / "tokenizer.json", content)
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    decoder = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in added}
    # The one class that takes tokenizer.json as it is, in transformers 4 and 5.
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": PAD_TOKEN}
    settings |= {"added_tokens_decoder": decoder, "processor_class": "LlavaProcessor"}
    settings.pop("auto_map", None)
    _dump(path, settings)
    if (folder / "special_tokens_map.json").is_file():
        special = read_json(folder / "special_tokens_map.json") | {"pad_token": PAD_TOKEN}
        _dump(folder / "special_tokens_map.json", special)
    if (folder / "added_tokens.json").is_file():
        known = read_json(folder / "added_tokens.json")
        new = {token: ids[token] for token in (IMAGE_TOKEN, PAD_TOKEN)}
        _dump(folder / "added_tokens.json", known | new)
    return ids[IMAGE_TOKEN], ids[PAD_TOKEN]


def _plain_merges(model: dict[str, Any]) -> None:
    """Write merges as "a b", which tokenizers before 0.20 (transformers 4.40) need."""
    merges = model.get("merges") or []
    if all(isinstance(pair, list) and not any(" " in part for part in pair) for pair in merges):
        model["merges"] = [" ".join(pair) for pair in merges]


_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def generation_config(source: Source) -> dict[str, Any]:
    """Return generation_config.json with every token that ends an answer.

    Those of the base model, and those of the prompt template: without `<|end|>` or `<|eot_id|>`
    a model never stops. The base's sampling settings stay with text models only.
    """
    path = source.tokenizer_dir / "generation_config.json"
    held = read_json(path) if path.is_file() else {}
    ends: list[int] = []
    for value in (held.get("eos_token_id"), source.llm_config.get("eos_token_id")):
        ends += value if isinstance(value, list) else [] if value is None else [value]
    ends += end_tokens(source)
    unique = list(dict.fromkeys(int(token) for token in ends))
    drop: tuple[str, ...] = ("transformers_version", "_from_model_config")
    if not held.get("do_sample"):  # transformers refuses to save these beside greedy decoding
        drop += SAMPLING
    kept = {key: value for key, value in held.items() if key not in drop}
    config = kept if source.vision_config is None else {}
    for key in ("bos_token_id", "pad_token_id"):
        config[key] = held.get(key, source.llm_config.get(key))
    config["eos_token_id"] = unique[0] if len(unique) == 1 else unique or None
    return {key: value for key, value in config.items() if value is not None}


def template_of(source: Source) -> Template | None:
    """Return the template the model was trained with, or the one that its tokenizer implies."""
    name = source.prompt_template or _guessed(source.tokenizer_dir)
    return get_template(name) if name else None


@cache
def _guessed(folder: Path) -> str | None:
    return guess_template(plain_tokenizer(folder))


def write_chat_template(source: Source, folder: Path) -> None:
    """Give the tokenizer in `folder` the format the model was trained with, as its chat template.

    A chat template that renders the very ids of training stays as it is; so does any where the
    format is not known, or is the tokenizer's own.
    """
    template = get_template(source.prompt_template) if source.prompt_template else None
    if template is None or template.from_tokenizer:
        return
    tokenizer = plain_tokenizer(folder)
    text = fitting_chat_template(template, tokenizer)
    if text == tokenizer.chat_template:
        return
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    _dump(path, settings | {"chat_template": text})  # where readers before 2025 look
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")


def end_tokens(source: Source) -> list[int]:
    """Return the ids of the template's stop words that are single tokens."""
    template = template_of(source)
    if template is None or not template.stop_words:
        return []
    if not (source.tokenizer_dir / "tokenizer.json").is_file():
        return []  # a plain SentencePiece model has no control tokens beyond its own end token
    tokenizer = read_tokenizer(source.tokenizer_dir)
    ids = [tokenizer.token_to_id(word) for word in template.stop_words]
    return [token for token in ids if token is not None]


def _built_tokenizer(folder: Path) -> str:
    """Return tokenizer.json for a folder that has only a SentencePiece model."""
    from llava_tools.model.load import load_tokenizer

    try:
        tokenizer = load_tokenizer(folder)
        text: str = tokenizer.backend_tokenizer.to_str(pretty=True)
    except Exception as error:  # sentencepiece, protobuf or the file itself may be at fault
        raise UserError(
            f"'{folder}' has no tokenizer.json, and none could be made: {error}",
            "Save the tokenizer once with transformers, and convert again.",
        ) from error
    return text


def _dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
