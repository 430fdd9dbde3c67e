"""Images: safe opening, padding to a square, and the classic CLIP and SigLIP preprocessing.

Published models were trained with Pillow's resampling. The preprocessing is written out here, in
a few lines, instead of calling transformers' PIL classes: those exist only in late 5.x releases
(before, the same name means a torchvision class whose values differ by up to 0.015), importing
them takes seconds in every loader process, and a table of 256 values a channel is faster. The
tests hold it equal to them, to the last bit.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError

from llava_tools.data.paths import MAX_BYTES, locate
from llava_tools.data.preprocessing import Preprocessing, read_config
from llava_tools.errors import UserError

# Pillow warns of a decompression bomb from here on; also the limit for padded and resized images.
MAX_PIXELS = 89_478_485
# What photographs and figures come in. Others are left out: EPS, for one, starts Ghostscript.
FILE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")


def open_image(path: str | Path, folder: str = "", *, follow_links: bool = False) -> Image.Image:
    """Return the image of a file as RGB; with `folder`, only if it lies inside it.

    Raises UserError naming the file: missing, outside the folder, too large, broken or no image.
    """
    full = locate(str(path), folder, follow_links=follow_links)
    try:
        data = Path(full).read_bytes()
    except OSError as error:
        raise UserError(f"The image '{full}' cannot be read: {error.strerror}.") from error
    return decode_image(data, f"The image '{full}'")


def decode_image(data: bytes, where: str) -> Image.Image:
    """Return an encoded image as RGB. `where` begins the message of the UserError it may raise."""
    if len(data) > MAX_BYTES:
        raise UserError(
            f"{where} has {len(data):,} bytes; the limit is {MAX_BYTES:,}.", "Shrink the image."
        )
    try:
        with Image.open(io.BytesIO(data), formats=FILE_FORMATS) as image:
            _check_pixels(image.size, where)
            return image.convert("RGB")
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{where}: {_reason(error)}.", "Shrink the image.") from error
    except Exception as error:  # decoders raise whatever a broken file makes them stumble over
        raise UserError(
            f"{where} is broken or no image: {_reason(error)}.",
            f"Replace or remove it. Formats that are read: {', '.join(FILE_FORMATS)}.",
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no known image format"
    return str(error).rstrip(".") or type(error).__name__


def _check_pixels(size: tuple[int, int], where: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{where} has {width} x {height} pixels; the limit is {MAX_PIXELS:,} in all.",
            "Shrink the image.",
        )


def pad_image_to_square(image: Image.Image, mean: tuple[float, ...]) -> Image.Image:
    """Centre the image on a square of the mean colour (LLaVA's expand2square)."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    _check_pixels((side, side), f"The square around an image of {width} x {height} pixels")
    canvas = Image.new("RGB", (side, side), tuple(int(255 * channel) for channel in mean))
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas


@dataclass(frozen=True)
class ImageProcessor:
    """Resize, crop, scale to 0..1 and normalise: from an RGB image to float32 [3, H, W]."""

    settings: Preprocessing

    @classmethod
    def from_folder(cls, name_or_path: str | Path) -> ImageProcessor:
        """Read the preprocessor_config.json of a vision tower's folder or hub id.

        Raises UserError when there is none, or when it asks for what is not done here.
        """
        return cls(Preprocessing.from_dict(*read_config(str(name_or_path))))

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> ImageProcessor:
        """Make one from the content of a preprocessor_config.json. Raises UserError."""
        return cls(Preprocessing.from_dict(config, "preprocessor_config"))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a classic preprocessor_config.json."""
        return self.settings.to_dict()

    @property
    def size(self) -> int:
        """The side of the square that an image becomes, in pixels."""
        return self.settings.size

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of each channel, between 0 and 1."""
        return self.settings.mean

    def __call__(self, image: Image.Image, pad_to_square: bool = False) -> torch.Tensor:
        """Return pixels [3, size, size]: of the whole image if padded, otherwise of its centre."""
        if pad_to_square:
            image = pad_image_to_square(image, self.mean)
        pixels_HWC = np.asarray(self._resized(image.convert("RGB")))
        channels = [self._values[c][pixels_HWC[..., c]] for c in range(3)]
        return torch.from_numpy(np.stack(channels))

    def _resized(self, image: Image.Image) -> Image.Image:
        resample = Image.Resampling(self.settings.resample)
        if self.settings.shortest_edge is None:
            return image.resize((self.size, self.size), resample)
        width, height = image.size
        short = min(width, height)
        new = (
            int(self.settings.shortest_edge * width / short),
            int(self.settings.shortest_edge * height / short),
        )
        _check_pixels(new, f"An image of {width} x {height} pixels, resized,")
        left, top = (new[0] - self.size) // 2, (new[1] - self.size) // 2
        resized = image.resize(new, resample)
        return resized.crop((left, top, left + self.size, top + self.size))

    @cached_property
    def _values(self) -> npt.NDArray[np.float32]:
        """The normalised value [3, 256] of each byte, rounded where transformers rounds."""
        scaled = (np.arange(256) * self.settings.rescale_factor).astype(np.float32)
        mean = np.array(self.settings.mean, dtype=np.float32)[:, None]
        std = np.array(self.settings.std, dtype=np.float32)[:, None]
        return np.asarray((scaled - mean) / std)
