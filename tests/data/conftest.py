"""What the tests of the data room share: the tiny tokenizers, and a way to make settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from llava_tools.config import DatasetSpec, Settings

FAMILIES = ("phi3", "llama3", "vicuna")


@pytest.fixture(scope="session")
def tokenizers(parts: Path) -> dict[str, Any]:
    """Return the tokenizers of the tiny LLMs by family."""
    return {name: PreTrainedTokenizerFast.from_pretrained(parts / name) for name in FAMILIES}


@pytest.fixture
def make_settings(parts: Path, tmp_path: Path) -> Callable[..., Settings]:
    """Return a function that makes settings over rows, which it writes to a file."""

    def make(rows: list[Any] | None = None, **changes: Any) -> Settings:
        path = parts / "llava.json"
        if rows is not None:
            path = tmp_path / "rows.json"
            path.write_text(json.dumps(rows))
        spec = {"data_path": str(path), "image_folder": str(parts / "images")}
        spec |= {key: changes.pop(key) for key in list(changes) if key in SPEC_KEYS}
        values: dict[str, Any] = {
            "llm_name_or_path": str(parts / "phi3"),
            "visual_encoder_name_or_path": str(parts / "clip"),
            "prompt_template": "phi3_chat",
            "datasets": (DatasetSpec(**spec),),
            "max_length": 512,
        }
        return Settings(**(values | changes))

    return make


SPEC_KEYS = set(DatasetSpec.__dataclass_fields__) - {"train_on"}  # the run's is meant
