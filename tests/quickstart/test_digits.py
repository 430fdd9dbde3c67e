"""The split is clean, and pictures are what they should be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_tools.quickstart import digits

FEW = slice(0, 40)


@pytest.fixture(scope="module")
def found() -> digits.Digits:
    return digits.load()


def test_there_are_as_many_pictures_as_we_say(found: digits.Digits) -> None:
    assert len(found.pixels) == len(found.targets) == digits.PICTURES
    assert found.pixels.max() == digits.FULL_INK


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_no_picture_is_on_both_sides(found: digits.Digits, seed: int) -> None:
    train, held_out = digits.split(found.targets, 300, seed)
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == list(range(digits.PICTURES))


def test_as_many_of_each_digit_are_held_out(found: digits.Digits) -> None:
    _, held_out = digits.split(found.targets, 300, 0)
    assert set(Counter(found.word(source) for source in held_out).values()) == {30}


def test_the_split_follows_from_the_seed(found: digits.Digits) -> None:
    assert digits.split(found.targets, 300, 3) == digits.split(found.targets, 300, 3)
    assert digits.split(found.targets, 300, 3) != digits.split(found.targets, 300, 4)


def test_no_copy_of_a_held_out_picture_is_trained_on(found: digits.Digits, tmp_path: Path) -> None:
    train, held_out = digits.split(found.targets, 300, 0)
    written = digits.write_train(tmp_path, found, train[FEW], 2, 0)
    asked = digits.write_held_out(tmp_path, found, held_out[FEW])
    assert not {p.source for p in written} & {p.source for p in asked}
    files = {(tmp_path / p.file).read_bytes() for p in written}
    assert len(files) == len(written) == 3 * 40  # copies differ from their original and each other
    assert not files & {(tmp_path / p.file).read_bytes() for p in asked}
    assert all(p.word == found.word(p.source) for p in written + asked)


def test_the_same_seed_gives_the_same_files(found: digits.Digits, tmp_path: Path) -> None:
    first = digits.write_train(tmp_path / "a", found, [5, 6], 2, 1)
    again = digits.write_train(tmp_path / "b", found, [5, 6], 2, 1)
    other = digits.write_train(tmp_path / "c", found, [5, 6], 2, 2)
    assert first == again == other
    read = [[(tmp_path / d / p.file).read_bytes() for p in first] for d in "abc"]
    assert read[0] == read[1]
    assert [a == c for a, c in zip(read[0], read[2], strict=True)] == [True, False, False] * 2


def test_a_picture_is_dark_ink_on_white_paper(found: digits.Digits) -> None:
    image = digits.draw(found.pixels[0])
    assert (image.size, image.mode) == ((digits.SIDE, digits.SIDE), "RGB")
    values = np.asarray(image)
    assert values[0, 0].tolist() == [255, 255, 255]
    assert values.min() < 40


def test_a_copy_stays_on_white_paper(found: digits.Digits) -> None:
    rng = np.random.default_rng(0)
    original = digits.draw(found.pixels[0])
    for _ in range(10):
        values = np.asarray(digits.vary(original, rng))
        ink = 255 - values.astype(float)
        assert values[0, 0].tolist() == [255, 255, 255]  # what comes in from outside is paper
        assert 0.6 < ink.sum() / (255.0 - np.asarray(original)).sum() < 1.5  # still the digit


def test_empty_pages_are_empty(tmp_path: Path) -> None:
    files = digits.write_empty(tmp_path, 8, 0)
    shades = []
    for file in files:
        with Image.open(tmp_path / file) as page:
            (colour,) = page.getcolors() or []
            shades.append(colour[1])
    assert len(set(shades)) > 4
