"""Real handwritten digits, scikit-learn's 1797 pictures of 8x8: the split and the picture files.

Pictures are held out before any copy is made, so that no copy of a held-out one is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, radians, sin
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PICTURES = 1797
SIDE = 32  # pixels of a picture; the tiny vision tower takes them as they are
FULL_INK = 16  # the largest value in scikit-learn's pictures

# How far a copy may differ from its original.
TURN = 12.0  # degrees
ZOOM = 0.1
SLANT = 0.15
SHIFT = 0.1  # of the side


@dataclass(frozen=True)
class Picture:
    """A picture file of a digit; `source` is its original's number in scikit-learn's set."""

    file: str  # relative to the folder of the data
    source: int
    word: str


@dataclass(frozen=True)
class Digits:
    """scikit-learn's pictures, [1797, 8, 8] from 0 to 16, and what they show, [1797]."""

    pixels: npt.NDArray[Any]
    targets: npt.NDArray[Any]

    def word(self, source: int) -> str:
        """Return what picture number `source` shows, as a word."""
        return WORDS[int(self.targets[source])]


def load() -> Digits:
    """Read scikit-learn's pictures; they come with the package."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return Digits(found.images, found.target)


def split(targets: npt.NDArray[Any], held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Return the numbers of the pictures to train on, and of those only to be asked about.

    The second list has `held_out` pictures, as many of each digit.
    """
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(targets))
    each = held_out // len(WORDS)
    kept = np.concatenate([order[targets[order] == digit][:each] for digit in range(len(WORDS))])
    return np.setdiff1d(order, kept).tolist(), rng.permutation(kept).tolist()


def draw(pixels: npt.NDArray[Any]) -> Image.Image:
    """Return 8x8 values as a picture: dark ink on white paper, smoothly enlarged."""
    paper = 255 - np.rint(pixels * (255 / FULL_INK)).astype(np.uint8)
    return Image.fromarray(paper).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")


def vary(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the picture a little turned, zoomed, slanted and shifted, as another hand writes."""
    angle, zoom = radians(rng.uniform(-TURN, TURN)), rng.uniform(1 - ZOOM, 1 + ZOOM)
    a, b = cos(angle) / zoom, sin(angle) / zoom + rng.uniform(-SLANT, SLANT)
    c, d = -sin(angle) / zoom, cos(angle) / zoom
    x, y = SIDE / 2 + rng.uniform(-SHIFT, SHIFT, 2) * SIDE  # where the centre goes
    matrix = (a, b, SIDE / 2 - a * x - b * y, c, d, SIDE / 2 - c * x - d * y)
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor="white"
    )


def write_train(
    folder: Path, digits: Digits, sources: list[int], copies: int, seed: int
) -> list[Picture]:
    """Write the pictures to train on, and `copies` varied ones of each, to `folder`/train."""
    rng = np.random.default_rng([seed, 2])
    (folder / "train").mkdir(parents=True)
    written = []
    for source in sources:
        original = draw(digits.pixels[source])
        for copy in range(copies + 1):
            picture = Picture(f"train/{source}_{copy}.png", source, digits.word(source))
            (vary(original, rng) if copy else original).save(folder / picture.file)
            written.append(picture)
    return written


def write_empty(folder: Path, count: int, seed: int) -> list[str]:
    """Write empty pages of different shades to `folder`/empty; return their files."""
    shades = np.random.default_rng([seed, 4]).integers(0, 256, count).tolist()
    (folder / "empty").mkdir(parents=True)
    files = [f"empty/{number}.png" for number in range(count)]
    for file, shade in zip(files, shades, strict=True):
        Image.new("RGB", (SIDE, SIDE), (shade,) * 3).save(folder / file)
    return files


def write_held_out(folder: Path, digits: Digits, sources: list[int]) -> list[Picture]:
    """Write the held-out pictures to `folder`/heldout, numbered as in the benchmark table."""
    (folder / "heldout").mkdir(parents=True)
    written = []
    for number, source in enumerate(sources):
        picture = Picture(f"heldout/{number}.png", source, digits.word(source))
        draw(digits.pixels[source]).save(folder / picture.file)
        written.append(picture)
    return written
