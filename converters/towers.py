"""Vision towers by themselves: HF CLIP or SigLIP, and open_clip's ViT, either way."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llava_tools.converters.convert import DTYPES
from llava_tools.converters.digests import Crc32
from llava_tools.converters.folder import new_folder
from llava_tools.converters.progress import track
from llava_tools.converters.to_open_clip import write_open_clip
from llava_tools.converters.to_xtuner import processor_config, tower_config
from llava_tools.converters.writer import Writer, parse_size
from llava_tools.errors import UserError, did_you_mean
from llava_tools.model.checksums import noting_checksums
from llava_tools.model.keymap import convert, invert
from llava_tools.model.open_clip import is_open_clip
from llava_tools.model.parts import Part, read_vision
from llava_tools.model.past_cache import past_cache
from llava_tools.model.source import open_source
from llava_tools.model.tables import VISION_FOLDER
from llava_tools.model.weights import read_json

OPEN_CLIP = "open_clip"


def is_tower(src: str | Path) -> bool:
    """Tell whether this is a vision tower alone: an open_clip checkpoint, or a CLIP or SigLIP."""
    config = Path(src).expanduser() / "config.json"
    if is_open_clip(src):
        return True
    return config.is_file() and str(read_json(config).get("model_type")).startswith(
        ("clip", "siglip")
    )


@past_cache()
@noting_checksums()
def convert_tower(
    src: str | Path,
    dst: str | Path,
    to: str,
    dtype: str | None = None,
    max_shard_size: str = "2GB",
    overwrite: bool = False,
    verify: bool = False,
) -> dict[str, Any]:
    """Convert a vision tower, or that of a LLaVA, to hf or open_clip; return what was written.

    `verify` also compares patch features with the source's and writes `conversion.json`.

    Raises UserError: an unknown name, a tower that the target cannot hold, other features.
    """
    if to not in (writers := {"hf": _write_hf, OPEN_CLIP: write_open_clip}):
        raise UserError(f"A vision tower has no format '{to}'.", did_you_mean(to, writers))
    part = read_vision(src) if is_tower(src) else _tower_of(src)
    origin = src if verify else None
    return _write(part, dst, to, dtype, max_shard_size, overwrite, [part.folder], origin)


def write_tower(
    part: Part,
    dst: str | Path,
    dtype: str | None,
    max_shard_size: str,
    overwrite: bool,
    sources: Sequence[Path],
) -> dict[str, Any]:
    """Write a tower as the folder that transformers reads."""
    return _write(part, dst, "hf", dtype, max_shard_size, overwrite, sources)


def _tower_of(src: str | Path) -> Part:
    source = open_source(src)
    if source.vision_config is None:
        raise UserError(f"'{src}' has no vision tower.", "Give a LLaVA or a vision tower.")
    held = {n: t for n, t in source.tensors.items() if n.startswith("visual_encoder.")}
    return Part(held, source.vision_config, source.path, source.image_processor)


def _write(
    part: Part,
    dst: str | Path,
    to: str,
    dtype: str | None,
    max_shard_size: str,
    overwrite: bool,
    sources: Sequence[Path],
    origin: str | Path | None = None,
) -> dict[str, Any]:
    """Write a tower; with `origin`, what was read, also the certificate."""
    if dtype not in (None, "auto", "keep") and dtype not in DTYPES:
        raise UserError(f"Unknown dtype '{dtype}'.", did_you_mean(str(dtype), DTYPES))
    held = {tensor.dtype for tensor in part.tensors.values()}
    wide = max(held, key=lambda kind: kind.itemsize)
    kind = DTYPES.get(dtype or "", wide if wide in DTYPES.values() else torch.float32)
    total = sum(tensor.count * kind.itemsize for tensor in part.tensors.values())
    target = Path(dst).expanduser()
    with (
        new_folder(target, overwrite=overwrite, sources=sources, need=total) as folder,
        track(f"{part.folder.name} -> {to}", 2 * total) as advance,
    ):
        writer = Writer(folder, target, kind, parse_size(max_shard_size), advance)
        writer.digest = Crc32 if origin is None else hashlib.sha256
        (write_open_clip if to == OPEN_CLIP else _write_hf)(part, writer)
        writer.compare()
        if origin is not None:
            from llava_tools.converters.verify_tower import certify_tower

            writer.json("conversion.json", certify_tower(part, origin, writer, to))
    report = {"path": str(target), "format": to, "dtype": writer.dtype_name, "bytes": total}
    return report | ({} if origin is None else {"verified": True})


def _write_hf(part: Part, writer: Writer) -> None:
    writer.weights(convert(part.tensors, invert(VISION_FOLDER), f"'{part.folder}'"))
    writer.json("config.json", tower_config(part.config, writer.dtype_name))
    if part.image_processor is not None:
        writer.json("preprocessor_config.json", processor_config(part.image_processor))
