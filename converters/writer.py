"""Write model folders: streamed into shards, re-read and compared, in place whole or not at all."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llava_tools.errors import UserError
from llava_tools.model.lazy import LazyTensor
from llava_tools.model.weights import DTYPES, read_weights

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_OURS = ("config.json", "llava_tools.json", "projector")  # one of them is in every model folder


def parse_size(text: str) -> int:
    """Return a size such as 2GB (10^9) or 500MiB (2^20) in bytes. Raises UserError."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    unit = found[2].upper() if found else "?"
    if found is None or unit not in _UNITS or float(found[1]) <= 0:
        raise UserError(f"'{text}' is no size.", "Write for example 2GB or 500MB.")
    return int(float(found[1]) * _UNITS[unit])


@contextmanager
def new_folder(
    target: Path, *, overwrite: bool = False, sources: Iterable[Path] = (), need: int = 0
) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its name when the block ends well.

    On any error or Ctrl-C it is removed; a kill leaves it under a hidden name, which the next run
    cleans up. `sources` are folders that are being read, `need` the bytes to come.

    Raises UserError: the target is there, is or holds a source, or its disk is full.
    """
    _clean_up(target)
    _check_target(target, overwrite, sources)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    replaced = partial.with_suffix(".replaced")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(target.parent).free) < need:
            raise OSError(errno.ENOSPC, f"{need} bytes are needed, {free} are free")
        partial.mkdir()
        yield partial
        _sync(partial)
        if target.exists():
            target.rename(replaced)
        partial.rename(target)
        _sync_folder(target.parent)
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(
                f"The disk of '{target}' is full; nothing was written.",
                f"About {need / 1e9:.1f} GB are needed: free some space, or write elsewhere.",
            ) from error
        raise UserError(f"Could not write '{target}': {error}", "Nothing was written.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _settle(replaced, target)


def _check_target(target: Path, overwrite: bool, sources: Iterable[Path]) -> None:
    full = target.resolve()
    for source in sources:
        origin = source.resolve()
        if full == origin or full in origin.parents:
            raise UserError(
                f"'{target}' is or holds what is being read: '{source}'.",
                "Write to another folder.",
            )
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise UserError(
            f"'{target}' is there already.", "Choose another name, or replace it with --overwrite."
        )
    if not any((target / name).exists() for name in _OURS):
        raise UserError(
            f"'{target}' is no model folder, so it will not be replaced.", "Choose another name."
        )


def _clean_up(target: Path) -> None:
    """Remove what killed runs left beside the target, and put back what they had moved away."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.([0-9]+)\.(partial|replaced)")
    for path in target.parent.glob(f".{glob.escape(target.name)}.*"):
        found = pattern.fullmatch(path.name)
        if found is None or _alive(int(found[1])):
            continue
        if found[2] == "replaced":
            _settle(path, target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _settle(replaced: Path, target: Path) -> None:
    """Remove the folder that was replaced, or put it back when nothing took its place."""
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(folder: Path) -> None:
    """Force all files below a folder to the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(place) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_folder(Path(place))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot sync a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass
class Writer:
    """Writes one model into `folder`, which will be known as `target`; all weights as `dtype`.

    `advance` is told the bytes of every tensor that was written or compared.
    """

    folder: Path
    target: Path
    dtype: torch.dtype
    max_shard_bytes: int = 2 * 10**9
    advance: Callable[[int], None] = lambda count: None
    written: list[tuple[Path, dict[str, LazyTensor]]] = field(default_factory=list)

    @property
    def dtype_name(self) -> str:
        """The dtype as config.json spells it."""
        return str(self.dtype).removeprefix("torch.")

    def json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file, `name` relative to the folder."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")

    def weights(self, tensors: Mapping[str, LazyTensor], subfolder: str = "") -> None:
        """Write `model.safetensors`, in shards with an index when it is too big for one."""
        folder = self.folder / subfolder
        folder.mkdir(exist_ok=True)
        cast = {name: export_cast(name, tensor, self.dtype) for name, tensor in tensors.items()}
        shards = _shards(cast, self.max_shard_bytes)
        names = [
            f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
        ]
        if len(shards) == 1:
            names = ["model.safetensors"]
        for name, shard in zip(names, shards, strict=True):
            self._file(folder / name, shard)
        if len(shards) > 1:
            places = {t: name for name, shard in zip(names, shards, strict=True) for t in shard}
            total = sum(tensor.nbytes for tensor in cast.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
            self.json(f"{subfolder}/model.safetensors.index.json".lstrip("/"), index)
        self.written.append((folder, cast))

    def _file(self, path: Path, tensors: Mapping[str, LazyTensor]) -> None:
        """Write one safetensors file, a tensor at a time (8 bytes size, JSON header, values)."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, tensor in tensors.items():
            end = offset + tensor.nbytes
            header[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors.values():
                file.write(_bytes(tensor.read()).numpy().data)
                self.advance(tensor.nbytes)

    def compare(self) -> None:
        """Read all that was written back, by the safetensors library, and compare every bit.

        Raises UserError naming the weight that differs.
        """
        for folder, wanted in self.written:
            found = read_weights(folder)
            for name in sorted(set(wanted) | set(found)):
                if name not in found or name not in wanted or not _same(found[name], wanted[name]):
                    raise UserError(
                        f"{name} did not arrive unchanged in '{folder.name}'; nothing was written.",
                        "The disk or the memory may be faulty; try another place.",
                    )
                self.advance(wanted[name].nbytes)


def _same(found: LazyTensor, wanted: LazyTensor) -> bool:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    return torch.equal(_bytes(found.read()), _bytes(wanted.read()))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values as uint8 [nbytes], without a copy where they lie in order."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _shards(tensors: Mapping[str, LazyTensor], limit: int) -> list[dict[str, LazyTensor]]:
    """Fill shards up to `limit` bytes in the order given; a bigger tensor gets its own."""
    shards: list[dict[str, LazyTensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def export_cast(name: str, tensor: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    """Return the tensor in the output's dtype; integers stay. Reading raises UserError when a
    value is too large for it, which would make the model answer nonsense."""
    if not tensor.dtype.is_floating_point or tensor.dtype == dtype:
        return tensor

    def read() -> torch.Tensor:
        value = tensor.read()
        cast = value.to(dtype)
        if not torch.isfinite(cast).all() and torch.isfinite(value).all():
            raise UserError(
                f"{name} has values up to {float(value.abs().max()):.3g}, which overflow "
                f"{str(dtype).removeprefix('torch.')}.",
                "Export with --dtype bf16 or fp32.",
            )
        return cast

    return LazyTensor(tensor.shape, dtype, read)
