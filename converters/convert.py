"""`llava-tools convert SRC DST --to xtuner|llava|hf|gguf`: any format to any other.

llava-tools convert work_dirs/run/iter_5198.pth llava-phi3-hf --to hf --verify
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from llava_tools import __version__
from llava_tools.converters.digests import Crc32
from llava_tools.converters.folder import new_folder
from llava_tools.converters.gguf_header import is_gguf
from llava_tools.converters.phi_to_llama import as_phi3, forced_llama
from llava_tools.converters.progress import track
from llava_tools.converters.to_hf import check_hf, write_hf
from llava_tools.converters.to_llava import check_llava, write_llava
from llava_tools.converters.to_xtuner import write_xtuner
from llava_tools.converters.writer import Writer, parse_size
from llava_tools.errors import UserError, did_you_mean
from llava_tools.model.adapters import CONFIG
from llava_tools.model.checksums import noting_checksums
from llava_tools.model.past_cache import past_cache
from llava_tools.model.source import NOTES, Source, open_source

log = logging.getLogger(__name__)


def needs_gguf(module: str = "to_gguf") -> ModuleType:
    """Return a module of this room that imports the package gguf. Raises UserError without it."""
    try:
        return import_module(f"llava_tools.converters.{module}")
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise UserError(
            "Reading or writing GGUF needs the package gguf.",
            "Install it with: pip install 'llava-tools[gguf]'",
        ) from error


WRITERS: dict[str, Callable[[Source, Writer], None]] = {
    "xtuner": write_xtuner,
    "llava": write_llava,
    "hf": write_hf,
    "gguf": lambda source, writer: needs_gguf().write_gguf_folder(source, writer),
}
CHECKS: dict[str, Callable[[Source], None]] = {
    "llava": check_llava,
    "hf": check_hf,
    "gguf": lambda source: needs_gguf().check_gguf(source),
}
REMAPPED: dict[str, Callable[[Source], Source]] = {"llama": forced_llama, "phi3": as_phi3}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
DTYPES |= {str(dtype).removeprefix("torch."): dtype for dtype in list(DTYPES.values())}
DTYPES |= {"f16": torch.float16, "f32": torch.float32}  # as llama.cpp calls them
QUANTIZED = "q8_0"  # gguf's, of the LLM; what cannot be quantised is then fp16


@past_cache()
@noting_checksums()
def convert(
    src: str | Path,
    dst: str | Path,
    to: str,
    config: str | None = None,
    dtype: str | None = None,
    max_shard_size: str = "2GB",
    verify: bool = False,
    overwrite: bool = False,
    cfg_options: Sequence[str] = (),
    *,
    llm: str | None = None,
    adapter_only: bool = False,
    logits: bool = True,
) -> dict[str, Any]:
    """Convert a checkpoint or model folder; return what was written.

    `to` is xtuner, llava, hf or gguf; of a vision tower alone hf or open_clip. `config` is the
    config of a checkpoint's run, by default the config.py beside it, with `cfg_options` as its
    overrides. `dtype` is that of all weights (fp16, bf16, fp32; for gguf also q8_0); without one,
    a checkpoint becomes fp16 and a folder keeps what its LLM has.
    `verify` also compares logits with the source's and writes `conversion.json`; without `logits`
    it needs no memory for the model. `llm` remaps the LLM to `llama` or `phi3` first.
    `adapter_only` (to xtuner) keeps LoRA adapters apart.

    Raises UserError: an unknown name, a source that is incomplete or has changed since its
    checksums were written, a target that exists or cannot hold the model, a full disk, a weight
    that overflows, a failed comparison. Nothing is written then.
    """
    from llava_tools.converters import towers

    if to == towers.OPEN_CLIP or towers.is_tower(src):
        if adapter_only or llm:
            raise UserError(
                "A vision tower has no adapter and no LLM.",
                "Leave out --adapter-only, --llama and --phi3.",
            )
        return towers.convert_tower(src, dst, to, dtype, max_shard_size, overwrite, verify)
    _known("format", to, WRITERS)
    if dtype == QUANTIZED and to != "gguf":
        raise UserError(f"The {to} format has no {QUANTIZED}.", f"{QUANTIZED} goes with --to gguf.")
    if dtype not in (None, "auto", "keep"):
        _known("dtype", str(dtype), DTYPES | {QUANTIZED: None} if to == "gguf" else DTYPES)
    parse_size(max_shard_size)
    if is_gguf(src):
        raise UserError(
            f"'{src}' is GGUF, which is written only.",
            "Convert the checkpoint or folder that it was made from.",
        )
    source = open_source(src, config, cfg_options)
    if adapter_only:
        return _export_adapters(
            source, dst, to, dtype, max_shard_size, config, cfg_options, overwrite
        )
    if llm is not None:
        source = REMAPPED[llm](source)
    return export(
        source, dst, to, dtype, max_shard_size, verify=verify, overwrite=overwrite, logits=logits
    )


def _export_adapters(
    source: Source,
    dst: str | Path,
    to: str,
    dtype: str | None,
    max_shard_size: str,
    config: str | None,
    cfg_options: Sequence[str],
    overwrite: bool,
) -> dict[str, Any]:
    from llava_tools.converters.to_adapters import adapter_writer

    if to != "xtuner":
        raise UserError(
            f"The {to} format has no place for adapters.", "--adapter-only goes with --to xtuner."
        )
    write = adapter_writer(source, config, cfg_options)
    extra = {"base": write.base}
    return export(
        source, dst, to, dtype, max_shard_size, overwrite=overwrite, write=write, extra=extra
    )


@past_cache()
def export(
    source: Source,
    dst: str | Path,
    to: str,
    dtype: str | None = None,
    max_shard_size: str = "2GB",
    *,
    verify: bool = False,
    logits: bool = True,
    overwrite: bool = False,
    reads: Sequence[Path] = (),
    write: Callable[[Source, Writer], None] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write an opened source, as `convert` does.

    `reads` are more folders that are being read; `write` takes the place of the format's writer,
    with `extra` notes.
    """
    start, target = time.monotonic(), Path(dst).expanduser()
    _known("format", to, WRITERS)
    _check_before(source, to, runs=verify and logits)
    if (source.tokenizer_dir / CONFIG).is_file():  # an adapter's own
        from llava_tools.model.load import check_vocabulary, load_tokenizer

        check_vocabulary(source, load_tokenizer(source.tokenizer_dir))
    quantized = dtype == QUANTIZED
    kind = torch.float16 if quantized else choose_dtype(source, dtype)
    if to == "gguf":
        total = needs_gguf().size_of_gguf(source, kind, quantized)
    else:
        total = sum(_size(tensor.shape, kind) for tensor in source.tensors.values())
    sources = [source.path, source.tokenizer_dir, *reads]
    if source.visual_encoder_name and Path(source.visual_encoder_name).is_dir():
        sources.append(Path(source.visual_encoder_name))
    with (
        new_folder(target, overwrite=overwrite, sources=sources, need=total) as folder,
        track(f"{source.path.name} -> {to}", 2 * total) as advance,
    ):
        writer = Writer(folder, target, kind, parse_size(max_shard_size), advance)
        writer.quantized = quantized
        writer.digest = hashlib.sha256 if verify else Crc32
        (write or WRITERS[to])(source, writer)
        written = time.monotonic()
        writer.compare()
        checked = time.monotonic()
        writer.json(NOTES, {**notes(source, to), **(extra or {})})
        report = {"path": str(target), "format": to, "dtype": writer.dtype_name, "bytes": total}
        if verify:
            report["verified"] = _certify(source, writer, to, logits)
    report["seconds"] = round(time.monotonic() - start, 2)
    report["check_seconds"] = round(checked - written, 2)  # of what was read and written
    log.info(
        "Wrote '%s' (%s, %s, %.2f GB) in %.1f s, %.1f to compare what was read and written.",
        *(target, to, report["dtype"], total / 1e9, report["seconds"], report["check_seconds"]),
    )
    return report


def _check_before(source: Source, to: str, *, runs: bool) -> None:
    """Refuse what the format cannot hold, or the memory, where the model is to run."""
    if to in CHECKS and not (to == "hf" and source.vision_config is None):
        CHECKS[to](source)
    if runs:
        from llava_tools.converters.verify import check_memory

        check_memory(source.tensors, f"'{source.path}'")


def _certify(source: Source, writer: Writer, to: str, logits: bool) -> bool:
    """Write the certificate of what was written."""
    from llava_tools.converters.verify import certify

    certificate = certify(source, writer, to, logits=logits)
    writer.json("conversion.json", certificate)
    return bool(certificate["passed"])


def choose_dtype(source: Source, name: str | None) -> torch.dtype:
    """Return the dtype of an export.

    Checkpoints hold fp32 masters: fp16 keeps three more bits of them than bf16, and is what the
    published models have. A finished folder keeps what its LLM has, so that nothing is rounded.
    """
    if name is not None and name in DTYPES:
        return DTYPES[name]
    if source.format == "pth" and name != "keep":
        return torch.float16
    sizes: dict[torch.dtype, int] = {}
    for key, tensor in source.tensors.items():
        if key.startswith("llm."):
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    kind = max(sizes, key=lambda dtype: sizes[dtype])
    if kind not in DTYPES.values():
        raise UserError(
            f"'{source.path}' holds its LLM in {str(kind).removeprefix('torch.')}.",
            "Choose the export's dtype with --dtype fp16, bf16 or fp32.",
        )
    return kind


def notes(source: Source, to: str) -> dict[str, Any]:
    """Return llava_tools.json: how the model was trained, which no other file says."""
    tower = source.visual_encoder_name
    return {
        "format": to,
        "prompt_template": source.prompt_template,
        "visual_select_layer": source.visual_select_layer,
        "pad_image_to_square": source.pad_image_to_square,
        # A name of the hub says which architecture it is; a path of this machine says nothing.
        "visual_encoder": tower if tower and re.fullmatch(r"[\w.-]+/[\w.-]+", tower) else None,
        "llava_tools_version": __version__,
        # The hf format writes them out as two; reading it back makes them one again.
        **({"tied_embeddings": True} if source.llm_config.get("tie_word_embeddings") else {}),
    }


def without_vision(source: Source) -> Source:
    """Return the LLM of a source as a text model."""
    llm = {name: tensor for name, tensor in source.tensors.items() if name.startswith("llm.")}
    return replace(
        source, tensors=llm, vision_config=None, projector_config=None, image_processor=None
    )


def _known(what: str, name: str, table: dict[str, Any]) -> None:
    if name not in table:
        raise UserError(f"Unknown {what} '{name}'.", did_you_mean(name, table))


def _size(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return int(torch.Size(shape).numel()) * dtype.itemsize
