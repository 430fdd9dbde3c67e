"""The preprocessing's settings are read from every layout and written in the classic one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava_tools.data.images import ImageProcessor
from llava_tools.data.preprocessing import DEFAULTS, Preprocessing
from llava_tools.errors import UserError
from tests.tiny import PREPROCESSORS

OPENAI_336 = {  # the form of openai/clip-vit-large-patch14-336
    "crop_size": 336,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 336,
}


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_reading_and_writing_keeps_every_value(parts: Path, kind: str) -> None:
    written = ImageProcessor.from_folder(parts / kind).to_dict()
    assert written == PREPROCESSORS[kind] | {"do_convert_rgb": True}


def test_the_old_layout_with_bare_numbers() -> None:
    settings = ImageProcessor.from_dict(OPENAI_336).settings
    assert (settings.kind, settings.size, settings.shortest_edge) == (
        "CLIPImageProcessor",
        336,
        336,
    )
    assert settings.rescale_factor == 1 / 255
    squashed = ImageProcessor.from_dict(OPENAI_336 | {"do_center_crop": False}).settings
    assert (squashed.size, squashed.shortest_edge) == (336, None)
    assert ImageProcessor.from_dict(squashed.to_dict()).settings == squashed


def test_the_folded_layout_of_newer_versions(tmp_path: Path) -> None:
    content = {"image_processor": PREPROCESSORS["clip"], "processor_class": "LlavaProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    assert ImageProcessor.from_folder(tmp_path).to_dict() == PREPROCESSORS["clip"]


def test_a_processor_config_without_image_processor_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(json.dumps({"patch_size": 14}))
    with pytest.raises(UserError, match="No preprocessor_config.json at"):
        ImageProcessor.from_folder(tmp_path)


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_defaults_are_those_of_transformers(name: str) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    oracle: Any = SiglipImageProcessorPil if name.startswith("Siglip") else CLIPImageProcessorPil
    ours = Preprocessing.from_dict({"image_processor_type": name}, "x")
    assert ours == Preprocessing.from_dict(oracle().to_dict(), "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_processor_type": "ViTImageProcessor"}, "'ViTImageProcessor' is not supported"),
        ({"image_processor_type": None}, "the image processor 'None' is not supported"),
        ({"do_normalize": False}, "'do_normalize' = False is not supported"),
        ({"do_resize": False}, "'do_resize' = False is not supported"),
        ({"image_mean": [0.5]}, "1 channels instead of 3"),
        ({"crop_size": {"height": 20, "width": 28}}, "20 x 28 pixels are no square"),
        ({"crop_size": {"height": 40, "width": 40}}, "size 28 and crop_size 40 do not give"),
        ({"do_center_crop": False}, "{'shortest_edge': 28} gives no height"),
        ({"size": {"longest_edge": 28}}, "gives no height and width"),
        ({"size": {"height": 30, "width": 30}}, "size 30 and crop_size 28 differ"),
        ({"size": "big"}, "cannot be used: 'big' gives no"),
    ],
)
def test_what_is_not_done_here_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(PREPROCESSORS["clip"] | change))
    with pytest.raises(UserError, match=message) as caught:
        ImageProcessor.from_folder(tmp_path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("content", ["{", "\x80"])
def test_a_broken_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "preprocessor_config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"preprocessor_config.json' is no JSON file"):
        ImageProcessor.from_folder(tmp_path)


def test_neither_a_folder_nor_a_downloaded_model() -> None:
    with pytest.raises(UserError, match="No preprocessor_config.json at 'nobody/nothing'"):
        ImageProcessor.from_folder("nobody/nothing")
