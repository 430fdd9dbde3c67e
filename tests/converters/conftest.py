"""Runs of the tiny parts, converted once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llava_tools.converters.convert import convert
from tests.model.checkpoints import make_run


@pytest.fixture(scope="session")
def runs(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints by family: `phi3`, `llama3`, `vicuna`, `siglip` (vicuna with that tower)."""
    root = tmp_path_factory.mktemp("runs")
    found = {name: make_run(root / name, parts, name) for name in ("phi3", "llama3", "vicuna")}
    return found | {"siglip": make_run(root / "siglip", parts, "vicuna", "siglip")}


@pytest.fixture(scope="session")
def exported(
    runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """Return the folder of a family in a format (fp32), written when first asked for."""
    root = tmp_path_factory.mktemp("exported")

    def folder(name: str, to: str) -> Path:
        target = root / f"llava-{name}-{to}"
        if not target.exists():
            convert(runs[name], target, to, dtype="fp32")
        return target

    return folder
