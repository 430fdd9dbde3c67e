"""XTuner's `convert merge` and `convert split`: an adapter into its base, and one tensor a file."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llava_tools.converters.convert import export
from llava_tools.converters.folder import new_folder
from llava_tools.converters.towers import write_tower
from llava_tools.converters.writer import Writer, parse_size
from llava_tools.model.adapted import read_llm_adapter, warn_of_another_name, with_adapter
from llava_tools.model.adapters import merge_adapter, read_adapter
from llava_tools.model.assembly import assemble, read_notes
from llava_tools.model.checksums import noting_checksums
from llava_tools.model.parts import read_llm, read_vision, resolve_folder
from llava_tools.model.past_cache import past_cache
from llava_tools.model.weights import has_weights, read_weights


@past_cache()
@noting_checksums()
def merge(
    base: str,
    adapter: str,
    dst: str | Path,
    is_clip: bool = False,
    max_shard_size: str = "2GB",
    overwrite: bool = False,
    dtype: str = "fp16",
) -> dict[str, Any]:
    """`convert merge BASE ADAPTER DST [--is-clip]`: an LLM (or CLIP tower) with its LoRA merged.

    In fp16, as XTuner, unless `dtype` says otherwise. The tokenizer and embeddings that an adapter
    brings are those of the merged model. The base is read as it was published, so an adapter that
    was trained on a quantized one (QLoRA) gets the unquantized weights.
    """
    if is_clip:
        tower, held = read_vision(base), read_adapter(adapter, "visual_encoder")
        warn_of_another_name(held, tower.folder)
        merged = replace(tower, tensors=merge_adapter(tower.tensors, held))
        sources = [merged.folder, held.folder]
        return write_tower(merged, dst, dtype, max_shard_size, overwrite, sources)
    llm, held = read_llm(base), read_llm_adapter(adapter)
    plain = assemble(llm.folder, "hf", llm, None, None, read_notes(llm.folder))
    source, reads = with_adapter(plain, held), [llm.folder, held.folder]
    return export(source, dst, "hf", dtype, max_shard_size, overwrite=overwrite, reads=reads)


@past_cache()
@noting_checksums()
def split(src: str | Path, dst: str | Path, overwrite: bool = False) -> dict[str, Any]:
    """`convert split SRC DST`: the same folder with every tensor in a file of its own.

    For machines whose disk or network takes small files only. Nothing is cast. What lies in
    folders within it (tower and projector of the xtuner format, adapters) comes along, split
    where it is a model's weights.
    """
    source, target = resolve_folder(src), Path(dst).expanduser()
    tensors = {"": read_weights(source)}
    inner = sorted(path for path in source.iterdir() if path.is_dir() and path.name[:1] != ".")
    tensors |= {path.name: read_weights(path) for path in inner if has_weights(path)}
    total = sum(tensor.nbytes for held in tensors.values() for tensor in held.values())
    with new_folder(target, overwrite=overwrite, sources=[source], need=total) as folder:
        writer = Writer(folder, target, torch.float32, parse_size("1"))
        for name, held in tensors.items():
            writer.weights(held, name, cast=False)
            for file in _other_files(source / name):
                shutil.copyfile(file, folder / name / file.name)
        for path in inner:
            if path.name not in tensors:
                shutil.copytree(path, folder / path.name)
        writer.compare()
    count = sum(len(held) for held in tensors.values())
    return {"path": str(target), "tensors": count, "bytes": total}


def _other_files(folder: Path) -> Iterable[Path]:
    """Return what lies in a folder besides weights, their indices, and a certificate of these."""
    left = (
        *(".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".index.json", ".gguf"),
        "conversion.json",
    )
    return [f for f in sorted(folder.iterdir()) if f.is_file() and not f.name.endswith(left)]
