"""`llava-tools convert check A B`: are two models the same, tensor by tensor and by their logits?

B may be another format than A, another dtype (A is then rounded to it), and have more rows of
vocabulary. Where one of them is a Phi-3 and the other a Llama, both are compared as Llamas. With
GGUF as one of them, its bytes are compared with those that the other becomes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llava_tools.converters.convert import needs_gguf
from llava_tools.converters.digests import sha256
from llava_tools.converters.gguf_header import is_gguf
from llava_tools.converters.phi_to_llama import as_llama
from llava_tools.converters.progress import track
from llava_tools.converters.readers import READERS, Logits
from llava_tools.converters.verify import (
    check_memory,
    compare_logits,
    fixed_input,
    source_logits,
    versions,
)
from llava_tools.converters.writer import export_cast, tensor_bytes
from llava_tools.errors import UserError
from llava_tools.model.checksums import compare_checksums, noting_checksums
from llava_tools.model.lazy import LazyTensor
from llava_tools.model.past_cache import past_cache
from llava_tools.model.source import Source, open_source

Load = Callable[[], Logits]

EMBEDDINGS = ("llm.model.embed_tokens.weight", "llm.lm_head.weight")


@past_cache()
@noting_checksums()
def check(
    first: str | Path, second: str | Path, config: str | None = None, *, logits: bool = True
) -> dict[str, Any]:
    """Return the certificate of two models; `passed` says whether they are the same.

    `config` is that of the run of a checkpoint. Without `logits` only tensors are compared.

    Raises UserError when one of them cannot be read, or cannot be read by its format's own reader.
    """
    given = Path(first).expanduser(), Path(second).expanduser()
    compare = _COMPARE[is_gguf(given[0]), is_gguf(given[1])]
    record, pair = compare(*given, config, logits)
    compare_checksums()
    record |= {"versions": versions()}
    passed = not (record["missing"] or record["extra"] or record["changed"])
    if logits and passed:
        record |= compare_logits(pair.given(), pair.first, pair.second)
        passed = record["logits_equal"] and record["greedy_tokens_equal"]
    return {"passed": passed, **record}


@dataclass(frozen=True)
class Pair:
    """How to make the input of both models, and how to load each."""

    given: Callable[[], tuple[list[int], torch.Tensor]]
    first: Load
    second: Load


def _models(
    first: Path, second: Path, config: str | None, logits: bool
) -> tuple[dict[str, Any], Pair]:
    """Compare tensors; return the record, and how to load both models."""
    a, b = _opened(first, config, logits), open_source(second, config)
    left, right = _alike(a, b)
    total = sum(t.nbytes for side in (left, right) for t in side.tensors.values())
    with track(f"{a.path.name} = {b.path.name}", total) as advance:
        record = _tensors(left.tensors, right.tensors, advance)
    rounded = replace(a, tensors=_rounded(a.tensors, b.tensors))
    pair = Pair(lambda: fixed_input(a), lambda: source_logits(rounded), _reader(b))
    return _sides((a.path, a.format), (b.path, b.format)) | record, pair


def _model_and_gguf(
    first: Path, second: Path, config: str | None, logits: bool
) -> tuple[dict[str, Any], Pair]:
    """Compare a model with a folder of GGUF files, as `_models`."""
    room, a = needs_gguf("check_gguf"), _opened(first, config, logits)
    folder = second.parent if second.is_file() else second
    found = room.open_gguf(folder)
    a = room.same_family(a, found)
    total = sum(path.stat().st_size for path in folder.glob("*.gguf"))
    with track(f"{a.path.name} = {folder.name}", 2 * total) as advance:
        record = room.compare_tensors(a, found, advance)
    pair = Pair(
        lambda: fixed_input(a),
        lambda: source_logits(room.rounded(a, found)),
        lambda: READERS["gguf"](folder),
    )
    return _sides((a.path, a.format), (folder, "gguf")) | record, pair


def _gguf_and_model(
    first: Path, second: Path, config: str | None, logits: bool
) -> tuple[dict[str, Any], Pair]:
    """Compare GGUF with a model: the model becomes GGUF, and what A lacks is what B has."""
    record, pair = _model_and_gguf(second, first, config, logits)
    turned = {"first": "second", "second": "first", "missing": "extra", "extra": "missing"}
    record = {key: record[turned.get(key, key)] for key in record}
    return record, Pair(pair.given, pair.second, pair.first)


def _two_gguf(
    first: Path, second: Path, config: str | None, logits: bool
) -> tuple[dict[str, Any], Pair]:
    """Compare two folders of GGUF files: keys and bytes."""
    room = needs_gguf("check_gguf")
    folders = [path.parent if path.is_file() else path for path in (first, second)]
    one, other = (room.open_gguf(folder) for folder in folders)
    if logits:
        check_memory(room.sizes(one), f"'{folders[0]}'")
    total = sum(path.stat().st_size for folder in folders for path in folder.glob("*.gguf"))
    with track(f"{folders[0].name} = {folders[1].name}", total) as advance:
        record = room.compare_files(one, other, advance)
    loads = [lambda folder=folder: READERS["gguf"](folder) for folder in folders]
    pair = Pair(lambda: room.fixed_ids(one), loads[0], loads[1])
    return _sides((folders[0], "gguf"), (folders[1], "gguf")) | record, pair


# By whether A and B are GGUF
_COMPARE = {
    (False, False): _models,
    (False, True): _model_and_gguf,
    (True, False): _gguf_and_model,
    (True, True): _two_gguf,
}


def _opened(path: Path, config: str | None, logits: bool) -> Source:
    source = open_source(path, config)
    if logits:
        check_memory(source.tensors, f"'{source.path}'")
    return source


def _sides(first: tuple[Path, str], second: tuple[Path, str]) -> dict[str, Any]:
    named = {"first": first, "second": second}
    return {side: {"path": str(path), "format": kind} for side, (path, kind) in named.items()}


def verdict(record: Mapping[str, Any]) -> None:
    """Raise UserError for a certificate that says that the two differ."""
    if record["passed"]:
        return
    faults = [f"{len(record[kind])} {kind}" for kind in ("missing", "extra", "changed")]
    named = [name for kind in ("missing", "extra", "changed") for name in record[kind]]
    what = f"tensors: {', '.join(faults)}; for example {named[0]}" if named else "other logits"
    raise UserError(
        f"'{record['first']['path']}' and '{record['second']['path']}' differ ({what}).",
        "A has more rows of vocabulary, which only B may have: compare B with A."
        if named and named == record.get("fewer_rows")
        else "The report above lists every difference.",
    )


def _reader(source: Source) -> Load:
    """Return how to load a model by the reader of its format, which knows none of our tables."""
    if source.format == "pth":  # nobody else reads these
        return lambda: source_logits(source)
    kind = source.format if source.vision_config is not None else "text"
    return lambda: READERS[kind](source.path)


def _rounded(
    tensors: Mapping[str, LazyTensor], other: Mapping[str, LazyTensor]
) -> dict[str, LazyTensor]:
    """Return A's tensors, under A's names, in the dtypes that B's parts have."""
    kinds = {name.split(".")[0]: tensor.dtype for name, tensor in other.items()}
    return {name: export_cast(name, t, kinds[name.split(".")[0]]) for name, t in tensors.items()}


def _alike(a: Source, b: Source) -> tuple[Source, Source]:
    """Return both with the same names: as Llamas if one is, an output embedding in each or none."""
    if a.llm_config["model_type"] != b.llm_config["model_type"]:
        a, b = as_llama(a), as_llama(b)
    first, last = EMBEDDINGS
    if (last in a.tensors) != (last in b.tensors) and first in a.tensors and first in b.tensors:
        a, b = (
            replace(s, tensors={**s.tensors, last: s.tensors.get(last, s.tensors[first])})
            for s in (a, b)
        )
    return a, b


def _tensors(
    left: Mapping[str, LazyTensor],
    right: Mapping[str, LazyTensor],
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Return what B lacks, what it has besides, what differs, and the SHA-256 of what is equal."""
    equal: dict[str, str] = {}
    changed, rounded, grown, fewer = [], [], [], []
    for name in sorted(set(left) & set(right)):
        wanted, found = left[name], right[name]
        rows = wanted.shape[0] if wanted.shape else 0
        if name in EMBEDDINGS and found.shape[0] > rows and found.shape[1:] == wanted.shape[1:]:
            found = found.rows(0, rows)
            grown.append(name)
        if found.shape != wanted.shape:
            changed.append(name)
            if name in EMBEDDINGS and found.shape[0] < rows and found.shape[1:] == wanted.shape[1:]:
                fewer.append(name)
            continue
        if found.dtype != wanted.dtype:
            rounded.append(name)
        digest = tensor_sha256(found, advance)
        if digest == tensor_sha256(wanted.to(found.dtype), advance):
            equal[name] = digest
        else:
            changed.append(name)
    return {
        "missing": sorted(set(left) - set(right)),
        "extra": sorted(set(right) - set(left)),
        "changed": changed,
        "other_dtype": len(rounded),
        "more_rows": grown,
        "fewer_rows": fewer,
        "equal": len(equal),
        "sha256": equal,
    }


def tensor_sha256(tensor: LazyTensor, advance: Callable[[int], None] = lambda count: None) -> str:
    """Return the digest of a tensor's values, read block by block."""
    return sha256(tensor_bytes(tensor), advance)
