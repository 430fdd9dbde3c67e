"""Read PyTorch checkpoints (.pth, .bin, .pt) without executing anything that they contain.

A pickle is a program: it names functions and has them called. This reader knows the few names that
tensors, containers and numbers need and answers every other name with an inert object, so
XTuner's extras (mmengine and numpy objects) are passed over and a hostile file does nothing. The
tensors stay in the memory-mapped file until they are read.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llava_tools.errors import UserError
from llava_tools.model.archive import Entries, damaged
from llava_tools.model.checksums import note_checksums
from llava_tools.model.lazy import LazyTensor

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
_INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool")
_DTYPES = {name: getattr(torch, name) for name in (*_FLOATS, *_INTEGERS)}
MAX_REPEATED = 16 * 2**20  # bytes of a tensor that is larger than the values it repeats

# What protocol 4 and older need. Left out: DUP, which no pickler writes, the extension registry,
# classes by the instruction of protocol 0, and protocol 5's buffers, whose size is believed before
# it is checked.
_OPCODES = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "MEMOIZE"),
    *("PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2"),
    *("LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "EMPTY_LIST", "APPEND", "APPENDS", "LIST"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS", "FROZENSET"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "BINPERSID"),
}


class Inert:
    """Stands for an object of a class that is not on the list; it takes anything, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Take a list item."""

    extend = add = append


def read_pickle(path: str | Path) -> Any:
    """Return the object saved in `path`, with a LazyTensor for every tensor.

    Raises UserError naming the file when it is missing, truncated, or no PyTorch checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No checkpoint file '{path}'.", "Check the path.")
    try:
        if not zipfile.is_zipfile(path):
            return _read_legacy(path)
        with zipfile.ZipFile(path) as archive:
            entries = Entries(path, archive)
        _check_opcodes(entries.pickle)
        unpickler = _Unpickler(entries)
        found = unpickler.load()
        note_checksums(entries, unpickler.tensors, found)
        return found
    except UserError:
        raise
    # A damaged pickle can raise nearly anything, for instance from the int() of a text.
    except Exception as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error


_NUMBERS = {"NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG"}
_NUMBERS |= {"LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MAX_SHARED_TUPLES = 48  # uses; 3 at a level of nesting make at most 3**16 visits


def _check_opcodes(program: bytes) -> None:
    """Refuse instructions that no checkpoint needs, and memo numbers that would fill the memory.

    A tuple of a tuple, twice each, is small but takes forever to hash as a key, so tuples of other
    things than numbers may not be used again and again (XTuner shares its `betas`).
    """
    nested: set[int] = set()
    numbers, marked, last, memos, shared = 0, False, False, 0, 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
        name = opcode.name
        if name not in _OPCODES:
            raise ValueError(f"pickle instruction {name}")
        if "PUT" in name or name == "MEMOIZE":
            place = memos if name == "MEMOIZE" else int(argument or 0)
            memos += 1
            if place > count:
                raise ValueError(f"memo number {argument}")
            (nested.add if last else nested.discard)(place)
            continue
        if "GET" in name and int(argument or 0) in nested:
            shared += 1
            if shared > MAX_SHARED_TUPLES:
                raise ValueError("tuples nested in one another again and again")
        flat = numbers >= _TUPLES[name] if name in _TUPLES else marked
        last = (name in _TUPLES or name == "TUPLE") and not flat
        marked = name == "MARK" or (marked and name in _NUMBERS)
        numbers = numbers + 1 if name in _NUMBERS else 0


class _Unpickler(pickle.Unpickler):
    def __init__(self, entries: Entries) -> None:
        super().__init__(io.BytesIO(entries.pickle))
        self.entries = entries
        self.spans: dict[str, tuple[int, int]] = {}
        self.tensors: list[tuple[LazyTensor, str]] = []  # each with the record that it lies in
        self.functions: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): lambda sizes=(): tuple(sizes),
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._tensor_v3,
            ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
            ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *rest: data,
            ("torch._tensor", "_rebuild_from_type_v2"): self._tensor_with_state,
            ("_codecs", "encode"): _encode,
        }

    def find_class(self, module: str, name: str) -> Any:
        """Answer a name in the pickle: from the list, or with a fresh inert class."""
        if module in ("torch", "torch.cuda", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) in self.functions:
            return self.functions[module, name]
        return type("Inert", (Inert,), {})

    def persistent_load(self, pid: Any) -> tuple[torch.dtype, str]:
        """Answer a storage: its dtype and the name of its record."""
        kind, dtype, key = pid[0], pid[1], str(pid[2])
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError(f"unknown storage {kind}")
        if key not in self.spans:
            self.spans[key] = self.entries.span(key)
        return dtype, key

    def _tensor(
        self,
        storage: tuple[torch.dtype, str],
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        *rest: Any,
    ) -> LazyTensor:
        tensor = self._lazy(storage[0], storage[1], offset, tuple(size), tuple(stride))
        self.tensors.append((tensor, storage[1]))
        return tensor

    def _tensor_v3(
        self,
        storage: tuple[torch.dtype, str],
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        requires_grad: bool,
        hooks: Any,
        dtype: torch.dtype,
        *rest: Any,
    ) -> LazyTensor:
        return self._tensor((dtype, storage[1]), offset, size, stride)

    def _tensor_with_state(
        self, function: Any, kind: Any, arguments: Any, *rest: Any
    ) -> LazyTensor:
        """Answer a tensor that carries Python attributes, as ZeRO-3 saves; they are not wanted."""
        if function not in (self._tensor, self._tensor_v3):
            raise ValueError("a tensor of unknown kind")
        tensor: LazyTensor = function(*arguments)
        return tensor

    def _lazy(
        self,
        dtype: torch.dtype,
        key: str,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
    ) -> LazyTensor:
        """Check that the tensor lies within its storage and describe it."""
        start, length = self.spans[key]
        entries = self.entries
        numbers = (offset, *size, *stride)
        if not all(isinstance(n, int) and n >= 0 for n in numbers) or len(size) != len(stride):
            raise ValueError("a tensor of impossible shape")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) and (last + 1) * dtype.itemsize > length:
            raise ValueError(f"a tensor reaches beyond its record data/{key}")
        # Steps of 0 repeat values (an expanded scalar); in earnest they stay small.
        if math.prod(size) * dtype.itemsize > max(length, MAX_REPEATED):
            raise ValueError(f"a tensor repeats its record data/{key} too often")

        count, place = math.prod(size), start + offset * dtype.itemsize
        if not count or _in_order(size, stride):
            return entries.bytes.tensor(place, size, dtype)

        def read() -> torch.Tensor:
            raw = entries.bytes.read(place, (last + 1 - offset) * dtype.itemsize)
            return raw.view(dtype).as_strided(size, stride)

        return LazyTensor(size, dtype, read)


def _in_order(size: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Tell whether a tensor's values lie in row-major order (steps along length 1 do not count)."""
    wanted = 1
    for length, step in zip(reversed(size), reversed(stride), strict=True):
        if length > 1 and step != wanted:
            return False
        wanted *= length
    return True


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Answer `_codecs.encode`, by which protocol 2 writes bytes; other codecs could be costly."""
    if encoding != "latin1" or not isinstance(text, str):
        raise ValueError(f"codec {encoding}")
    return text.encode("latin1")


def _read_legacy(path: Path) -> Any:
    """Read the format before torch 1.6 with torch's own allow-list; it cannot be mapped."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    return _wrapped(loaded, {})


def _wrapped(value: Any, done: dict[int, Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return LazyTensor.of(value)
    if id(value) not in done and isinstance(value, dict):
        done[id(value)] = {key: _wrapped(item, done) for key, item in value.items()}
    elif id(value) not in done and isinstance(value, (list, tuple)):
        done[id(value)] = type(value)(_wrapped(item, done) for item in value)
    return done.get(id(value), value)
