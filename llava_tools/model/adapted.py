"""A model with a LoRA adapter over it, and a folder that holds an adapter alone."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from llava_tools.errors import UserError
from llava_tools.model.adapters import (
    CONFIG,
    FOLDERS,
    Adapter,
    check_fits,
    merge_adapter,
    read_adapter,
)
from llava_tools.model.assembly import Source
from llava_tools.model.vocabulary import settle_embeddings
from llava_tools.model.zero import is_zero_dir

log = logging.getLogger(__name__)

TOKENIZERS = ("tokenizer.json", "tokenizer.model")


def adapter_folder(path: str | Path) -> Path:
    """Return where the LLM's adapter lies: the folder itself, or its `llm_adapter`.

    Raises UserError for a checkpoint, and for a folder that is whole with its projector and needs
    no --adapter.
    """
    folder = Path(path).expanduser()
    if folder.is_file() or is_zero_dir(folder):
        raise UserError(
            f"'{folder}' is a checkpoint, which names its own base, and no adapter's folder.",
            f"Give it as the MODEL; or write its adapter: llava-tools convert {folder} DST --to "
            "xtuner --adapter-only",
        )
    inner = folder / FOLDERS["llm"]
    if (folder / CONFIG).is_file() or not inner.is_dir():
        return folder
    if (folder / "projector").is_dir() or (folder / FOLDERS["visual_encoder"]).is_dir():
        raise UserError(
            f"'{folder}' holds more than the LLM's adapter: parts of a model with vision.",
            f"Give it as the MODEL, or its '{FOLDERS['llm']}' as the adapter.",
        )
    return inner


def is_adapter(path: Path) -> bool:
    """Tell whether a folder holds the adapter of an LLM and nothing else of a model."""
    if (path / "config.json").is_file() or (path / "projector").is_dir():
        return False
    return any((folder / CONFIG).is_file() for folder in (path, path / FOLDERS["llm"]))


def read_llm_adapter(path: str | Path) -> Adapter:
    """Read the adapter of an LLM, in peft's own folder or in one of ours. Raises UserError."""
    return read_adapter(adapter_folder(path), "llm")


def base_of(adapter: Adapter) -> str:
    """Return the name or path of an adapter's base. Raises UserError when it is not told."""
    base = adapter.base
    if base is None:
        raise UserError(
            f"'{adapter.folder / CONFIG}' does not tell the adapter's base model.",
            "Give the base as the MODEL and this folder with --adapter.",
        )
    if Path(base).is_dir() and Path(base).resolve() == adapter.folder.resolve():
        raise UserError(
            f"'{adapter.folder / CONFIG}' names its own folder as the base model.",
            "Give the base as the MODEL and this folder with --adapter.",
        )
    return base


def with_adapter(source: Source, adapter: Adapter, *, apart: bool = False) -> Source:
    """Return a model with an adapter merged in, with the tokenizer and template it brings.

    `apart` leaves the factors out, for weights that they cannot be merged into (4 or 8 bits);
    embeddings and layers that were trained as a whole are the adapter's either way.

    Raises UserError when the adapter belongs to another model.
    """
    warn_of_another_name(adapter, source.path)
    if apart:
        check_fits(source.tensors, adapter)
        tensors = {**source.tensors, **adapter.whole}
    else:
        tensors = merge_adapter(source.tensors, adapter)
    tensors, config = settle_embeddings(
        source.llm_config, source.tensors, adapter.whole, tensors, f"'{adapter.folder}'"
    )
    own = any((adapter.folder / name).is_file() for name in TOKENIZERS)
    return replace(
        source,
        tensors=tensors,
        llm_config=config,
        tokenizer_dir=adapter.folder if own else source.tokenizer_dir,
        prompt_template=adapter.notes.get("prompt_template") or source.prompt_template,
    )


def warn_of_another_name(adapter: Adapter, base: Path) -> None:
    """Say so where only shapes tell whether an adapter fits a base, and their names differ."""
    if not adapter.mark and adapter.base and Path(adapter.base).name != base.name:
        log.warning(
            "'%s' was trained on '%s'; only shapes tell whether it fits '%s'.",
            *(adapter.folder, adapter.base, base),
        )
