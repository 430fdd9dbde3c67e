"""Tables of weight names: rename, split and fuse, both ways, with nothing unknown or left over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from llava_tools.errors import UserError, nearest
from llava_tools.model.lazy import LazyTensor

Names = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Row:
    """One line of a table: the same weights under the names of two formats.

    In a name `{n}` is one number (a layer) and `{*}` any rest; names match as a whole. A tuple
    means that one weight of the other side holds these, stacked along dimension 0 in pieces of
    `sizes` rows. None means that this side drops the weight on purpose. `optional` rows may be
    absent from a complete model.
    """

    left: Names
    right: Names
    sizes: tuple[int, ...] = ()
    optional: bool = False


Table = Sequence[Row]


def invert(table: Table) -> list[Row]:
    """Return the table for the way back. Rows that drop a weight lead nowhere and go."""
    return [replace(row, left=row.right, right=row.left) for row in table if row.right is not None]


def convert(
    tensors: Mapping[str, LazyTensor], table: Table, where: str, layers: int | None = None
) -> dict[str, LazyTensor]:
    """Rename, split and fuse `tensors` by the first row of `table` that fits each name.

    With `layers`, every row that is not optional must be there in each of that many layers.
    `where` names the file or folder in errors.

    Raises UserError: a name that no row knows, a missing weight, a part of a fused weight that is
    left over, a weight whose rows do not add up, two names for one weight.
    """
    out: dict[str, LazyTensor] = {}
    origin: dict[str, str] = {}
    parts: dict[tuple[Row, tuple[str, ...]], dict[str, LazyTensor]] = {}
    seen: set[tuple[Row, tuple[str, ...]]] = set()
    for name, tensor in tensors.items():
        row, groups = _match(name, table, where)
        seen.add((row, groups))
        if isinstance(row.left, tuple):
            parts.setdefault((row, groups), {})[name] = tensor
            continue
        for target, piece in _renamed(name, tensor, row, groups, where):
            _add(out, origin, target, piece, name, where)
    for (row, groups), found in parts.items():
        _fuse(out, origin, row, groups, found, where)
    if layers is not None:
        _require(table, layers, seen, where)
    return out


def _renamed(
    name: str, tensor: LazyTensor, row: Row, groups: tuple[str, ...], where: str
) -> Iterable[tuple[str, LazyTensor]]:
    """Yield what one weight becomes: nothing, itself renamed, or the pieces it is made of."""
    if isinstance(row.right, str):
        yield _fill(row.right, groups), tensor
    elif isinstance(row.right, tuple):
        if sum(row.sizes) != tensor.shape[0]:
            raise UserError(
                f"{where}: {name} has {tensor.shape[0]} rows, but the config says "
                f"{' + '.join(map(str, row.sizes))} = {sum(row.sizes)}.",
                "The config.json does not belong to these weights.",
            )
        start = 0
        for target, size in zip(row.right, row.sizes, strict=True):
            yield _fill(target, groups), tensor.rows(start, start + size)
            start += size


def _fuse(
    out: dict[str, LazyTensor],
    origin: dict[str, str],
    row: Row,
    groups: tuple[str, ...],
    found: Mapping[str, LazyTensor],
    where: str,
) -> None:
    assert isinstance(row.left, tuple)
    names = [_fill(pattern, groups) for pattern in row.left]
    for name, size in zip(names, row.sizes, strict=True):
        if name not in found:
            raise UserError(
                f"{where}: {name} is missing, while {sorted(found)[0]} is there.",
                "The weights are incomplete; copy the folder again.",
            )
        if found[name].shape[0] != size:
            raise UserError(
                f"{where}: {name} has {found[name].shape[0]} rows, but the config says {size}.",
                "The config.json does not belong to these weights.",
            )
    if isinstance(row.right, str):
        fused = LazyTensor.concat([found[name] for name in names])
        _add(out, origin, _fill(row.right, groups), fused, names[0], where)


def _add(
    out: dict[str, LazyTensor],
    origin: dict[str, str],
    target: str,
    tensor: LazyTensor,
    name: str,
    where: str,
) -> None:
    if target in out:
        raise UserError(
            f"{where} holds one weight twice: {origin[target]} and {name} are both {target}.",
            "Remove one of them; which one is right cannot be told from the names.",
        )
    out[target] = tensor
    origin[target] = name


def _match(name: str, table: Table, where: str) -> tuple[Row, tuple[str, ...]]:
    for row in table:
        for pattern in _sides(row.left):
            found = _regex(pattern).fullmatch(name)
            if found:
                return row, found.groups()
    known = [pattern for row in table for pattern in _sides(row.left)]
    close = nearest(re.sub(r"\d+", "{n}", name), known)
    raise UserError(
        f"{where} has a weight of unknown name: {name}.",
        f"The nearest known name is {close}." if close else f"Known: {', '.join(known)}.",
    )


def _require(table: Table, layers: int, seen: set[tuple[Row, tuple[str, ...]]], where: str) -> None:
    """Check that each row came in every layer, and no layer beyond."""
    for row in table:
        pattern = next(iter(_sides(row.left)), "{*}")
        if "{*}" in pattern:
            continue
        found = {groups for known, groups in seen if known is row}
        wanted = map(_layer, range(layers)) if "{n}" in pattern else iter([()])
        missing = None if row.optional else next((one for one in wanted if one not in found), None)
        if missing is not None:
            raise UserError(
                f"{where} lacks a weight: {_fill(pattern, missing)}.",
                f"A complete model has {layers} layers here; copy the folder again.",
            )
        if extra := sorted(one for one in found if one and _layer(int(one[0]), layers) != one):
            raise UserError(
                f"{where} has a weight too many: {_fill(pattern, extra[0])}.",
                f"Its config.json says {layers} layers.",
            )


def _layer(number: int, layers: int | None = None) -> tuple[str, ...]:
    """Return what a pattern's {n} stands for in a layer, () beyond the last one."""
    return (str(number),) if layers is None or number < layers else ()


def _sides(names: Names) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else names


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern).replace(r"\{n\}", r"([0-9]+)").replace(r"\{\*\}", "(.+)")
    return re.compile(escaped)


def _fill(pattern: str, groups: tuple[str, ...]) -> str:
    values = iter(groups)
    return re.sub(r"\{n\}|\{\*\}", lambda _: next(values), pattern)
