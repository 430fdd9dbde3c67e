"""Images: opened safely, padded as LLaVA pads, preprocessed just as transformers' PIL classes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from llava_tools.data import images
from llava_tools.data.images import ImageProcessor, decode_image, open_image, pad_image_to_square
from llava_tools.errors import UserError

CLIP = CLIPImageProcessorPil(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42})
SQUASH = CLIPImageProcessorPil(size={"height": 42, "width": 42}, do_center_crop=False)
EDGE = CLIPImageProcessorPil(
    size={"shortest_edge": 50}, crop_size={"height": 42, "width": 42}, resample=2
)
SIGLIP = SiglipImageProcessorPil(size={"height": 42, "width": 42})
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, format: str = "PNG") -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "oracle", [CLIP, SQUASH, EDGE, SIGLIP], ids=["clip", "squash", "edge", "siglip"]
)
@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 130), height=st.integers(1, 130), seed=st.integers(0, 9))
def test_pixels_equal_the_classic_processor(
    oracle: CLIPImageProcessorPil, width: int, height: int, seed: int
) -> None:
    image = noise(width, height, seed)
    ours = ImageProcessor.from_dict(oracle.to_dict())(image)
    theirs = torch.as_tensor(np.asarray(oracle(image)["pixel_values"][0]))
    assert ours.shape == theirs.shape == (3, 42, 42)
    assert ours.dtype == theirs.dtype == torch.float32
    assert float((ours - theirs).abs().max()) == 0.0


def test_clip_at_its_real_size() -> None:
    oracle = CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    )
    ours = ImageProcessor.from_dict(oracle.to_dict())
    image = noise(640, 427)
    theirs = torch.as_tensor(np.asarray(oracle(image)["pixel_values"][0]))
    assert torch.equal(ours(image), theirs)
    assert ours.size == 336 and ours.mean == CLIP_MEAN
    padded = pad_image_to_square(image, CLIP_MEAN)
    assert torch.equal(ours(image, True), ours(padded))
    assert not torch.equal(ours(image, True), ours(image))


@pytest.mark.parametrize(
    ("size", "box"), [((40, 30), (0, 5)), ((30, 41), (5, 0)), ((7, 4), (0, 1))]
)
def test_padding_centres_on_the_mean_colour(size: tuple[int, int], box: tuple[int, int]) -> None:
    square = pad_image_to_square(Image.new("RGB", size, (9, 8, 7)), CLIP_MEAN)
    expected = Image.new("RGB", (max(size), max(size)), (122, 116, 104))
    expected.paste((9, 8, 7), (*box, box[0] + size[0], box[1] + size[1]))
    assert square.tobytes() == expected.tobytes()


def test_a_square_image_is_not_padded() -> None:
    image = noise(5, 5)
    assert pad_image_to_square(image, CLIP_MEAN) is image


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new(mode, (6, 5)).save(path)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (6, 5))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_usual_formats_are_read_and_broken_ones_refused(format: str) -> None:  # noqa: A002
    data = encoded(noise(64, 48), format)
    assert decode_image(data, "It").size == (64, 48)
    with pytest.raises(UserError, match="It is broken or no image: "):
        decode_image(data[: len(data) // 2], "It")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encoded(noise(64, 48))[:200])
    with pytest.raises(UserError, match=r"The image '.*x.png' is broken or no image"):
        open_image("x.png", str(tmp_path))


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(UserError, match="It is broken or no image: no known image format"):
        decode_image(data, "It")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 20_000])
def test_too_many_pixels_are_refused_before_decoding(side: int) -> None:
    data = encoded(Image.new("1", (side, side)))
    assert len(data) < 200_000
    with pytest.raises(UserError, match="pixels.*\nShrink the image"):
        decode_image(data, "It")


def test_too_many_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    with pytest.raises(UserError, match="It has 11 bytes; the limit is 10"):
        decode_image(b"x" * 11, "It")


def test_a_thread_of_an_image_does_not_explode() -> None:
    processor = ImageProcessor.from_dict(CLIP.to_dict())
    image = Image.new("RGB", (60_000, 1))
    with pytest.raises(UserError, match="An image of 60000 x 1 pixels, resized, has 2520000 x 42"):
        processor(image)
    with pytest.raises(UserError, match="The square around an image of 60000 x 1 pixels has"):
        processor(image, pad_to_square=True)


def test_a_folder_keeps_its_images_to_itself(tmp_path: Path) -> None:
    noise(4, 4).save(tmp_path / "x.png")
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="lies outside the image folder"):
        open_image("../x.png", str(tmp_path / "images"))
