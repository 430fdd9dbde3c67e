"""`llava-tools inspect`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from typer import Argument, echo

from llava_tools.cli.options import Json, RunConfig

TABLES = ("parts", "trained")  # of the report: a row for each part of the model


def inspect(
    path: Annotated[str, Argument(metavar="PATH", help="A checkpoint or a model folder.")],
    config: RunConfig = None,
    as_json: Json = False,
) -> None:
    """Tell what lies at a path: format, parts, sizes, dtypes, template."""
    from llava_tools.model.source import inspect

    report = inspect(path, config)
    if as_json:
        echo(json.dumps(report, ensure_ascii=False))
        return
    for line in _lines(report):
        echo(line)


def _lines(report: dict[str, Any]) -> Iterator[str]:
    for key, value in report.items():
        if key in TABLES:
            yield f"{key}:"
            for name, part in value.items():
                size = f"{part['tensors']} tensors, {part['parameters']:,} parameters"
                yield f"  {name:<15} {size}, {part['bytes']:,} bytes, {'/'.join(part['dtypes'])}"
        elif isinstance(value, dict):
            yield f"{key}: " + ", ".join(f"{name} {inner}" for name, inner in value.items())
        else:
            yield f"{key}: {value}"
