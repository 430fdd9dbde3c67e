"""Write the files of a model folder: streamed into shards, re-read and compared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llava_tools.converters.digests import Crc32, Digests, Hash, digest_of
from llava_tools.converters.new_file import NewFile
from llava_tools.errors import UserError
from llava_tools.model.checksums import compare_checksums
from llava_tools.model.lazy import LazyTensor
from llava_tools.model.safetensors_file import DTYPES
from llava_tools.model.weights import read_tensors, read_weights

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MODEL = "model"  # the stem of the files that every reader looks for
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Return a size such as 2GB (10^9) or 500MiB (2^20) in bytes. Raises UserError."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    unit = found[2].upper() if found else "?"
    if found is None or unit not in _UNITS or float(found[1]) <= 0:
        raise UserError(f"'{text}' is no size.", "Write for example 2GB or 500MB.")
    return int(float(found[1]) * _UNITS[unit])


@dataclass
class Writer:
    """Writes one model into `folder`, which will be known as `target`; all weights as `dtype`.

    `advance` is told the bytes of every tensor that was written or compared, `digest` is what it is
    compared by: SHA-256 where a certificate will name it.
    """

    folder: Path
    target: Path
    dtype: torch.dtype
    max_shard_bytes: int = 2 * 10**9
    advance: Callable[[int], None] = lambda count: None
    written: list[tuple[Path, str, dict[str, LazyTensor]]] = field(default_factory=list)
    digest: Callable[[], Hash] = Crc32
    digests: dict[tuple[Path, str], str] = field(default_factory=dict)  # one a tensor
    quantized: bool = False  # gguf: the LLM's matrices as q8_0
    checks: list[Callable[[], None]] = field(default_factory=list)  # of files of other kinds

    @property
    def dtype_name(self) -> str:
        """The dtype as config.json spells it."""
        return "q8_0" if self.quantized else str(self.dtype).removeprefix("torch.")

    def json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file, `name` relative to the folder."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")

    def weights(
        self,
        tensors: Mapping[str, LazyTensor],
        subfolder: str = "",
        *,
        stem: str = MODEL,
        cast: bool = True,
    ) -> None:
        """Write `model.safetensors`, in shards with an index when it is too big for one.

        A file of another `stem` is never cut. Without `cast` every tensor keeps its dtype.
        """
        folder = self.folder / subfolder
        folder.mkdir(exist_ok=True)
        if cast:
            tensors = {n: export_cast(n, tensor, self.dtype) for n, tensor in tensors.items()}
        held = dict(tensors)
        shards = _shards(held, self.max_shard_bytes) if stem == MODEL else [held]
        names = [
            f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
        ]
        if len(shards) == 1:
            names = [f"{stem}.safetensors"]
        for name, shard in zip(names, shards, strict=True):
            self._file(folder / name, shard)
        if len(shards) > 1:
            places = {t: name for name, shard in zip(names, shards, strict=True) for t in shard}
            total = sum(tensor.nbytes for tensor in held.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
            self.json(f"{subfolder}/model.safetensors.index.json".lstrip("/"), index)
        self.written.append((folder, stem, held))

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
        size = 8 + len(text) + offset
        with NewFile(path, size) as file, Digests(self.digest) as digests:
            file.write(len(text).to_bytes(8, "little") + text)
            found = {}
            for name, tensor in tensors.items():
                for values in tensor_bytes(tensor):
                    digests.add(values)
                    file.write(values)
                    self.advance(len(values))
                found[name] = digests.finish()
            self.digests |= {(path.parent, name): late.result() for name, late in found.items()}

    def compare(self) -> None:
        """Read all that was written back, and compare it by its digests; first what was read.

        Raises UserError naming the weight that differs.
        """
        compare_checksums()
        for check in self.checks:
            check()
        for folder, stem, wanted in self.written:
            self._compare(folder, stem, wanted)

    def _compare(self, folder: Path, stem: str, wanted: Mapping[str, LazyTensor]) -> None:
        alone = folder / f"{stem}.safetensors"
        found = read_weights(folder) if stem == MODEL else read_tensors(alone)
        for name in sorted(set(wanted) | set(found)):
            there, asked = found.get(name), wanted.get(name)
            if there is None or asked is None or not self._same(folder, name, there, asked):
                raise UserError(
                    f"{name} did not arrive unchanged in '{folder.name}'; nothing was written.",
                    "The disk or the memory may be faulty; try another place.",
                )

    def _same(self, folder: Path, name: str, found: LazyTensor, wanted: LazyTensor) -> bool:
        if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
            return False
        there = digest_of(self.digest, tensor_bytes(found), self.advance)
        return there == self.digests[folder, name]


def tensor_bytes(tensor: LazyTensor) -> Iterator[memoryview]:
    """Yield the values of a tensor as bytes, block by block."""
    for block in tensor.blocks():
        yield block.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


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

    def cast(value: torch.Tensor) -> torch.Tensor:
        result = value.to(dtype)
        # The smallest and the largest tell (NaN is both), ten times faster than asking each value.
        ends = torch.stack(value.aminmax()) if value.numel() else value
        if not torch.isfinite(ends.to(dtype)).all() and torch.isfinite(value).all():
            raise UserError(
                f"{name} has values up to {float(value.abs().max()):.3g}, which overflow "
                f"{str(dtype).removeprefix('torch.')}.",
                "Export with --dtype bf16 or fp32.",
            )
        return result

    return tensor.map(dtype, cast)
