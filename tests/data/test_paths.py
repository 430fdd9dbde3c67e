"""A row reaches no file outside its folder, however it spells the path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llava_tools.data import paths
from llava_tools.data.paths import MissingImage, OutsideFolder, locate
from llava_tools.errors import UserError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a folder `images` with files and links, beside files that must not be reached."""
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    other = tmp_path / "other" / "deep"
    other.mkdir(parents=True)
    for file in (images / "a.png", images / "sub/b.png", tmp_path / "secret.png"):
        file.write_bytes(b"x")
    (other / "c.png").write_bytes(b"x")
    (tmp_path / "other/secret.png").write_bytes(b"x")
    (tmp_path / "images2").mkdir()
    (tmp_path / "images2/d.png").write_bytes(b"x")
    (images / "inner").symlink_to(images / "sub")
    (images / "file.png").symlink_to(tmp_path / "secret.png")
    (images / "folder").symlink_to(other)
    return images


@pytest.mark.parametrize("path", ["a.png", "sub/b.png", "sub/../a.png", "inner/b.png", "./a.png"])
@pytest.mark.parametrize("follow_links", [False, True])
def test_files_inside_are_found(tree: Path, path: str, follow_links: bool) -> None:
    found = locate(path, str(tree), follow_links=follow_links)
    assert os.path.samefile(found, tree / path)


def test_the_folder_itself_may_be_a_link(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree)
    assert os.path.samefile(locate("a.png", str(tmp_path / "link")), tree / "a.png")


def test_relative_folders(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree.parent)
    assert os.path.samefile(locate("a.png", "images"), tree / "a.png")
    with pytest.raises(OutsideFolder):
        locate("../secret.png", "images")
    monkeypatch.chdir(tree)
    assert os.path.samefile(locate("b.png", "sub"), tree / "sub/b.png")


OUTSIDE = ["../secret.png", "sub/../../secret.png", "../images2/d.png", ".", "sub/..", ".."]


@pytest.mark.parametrize("path", [*OUTSIDE, "folder/../secret.png", "{root}/secret.png"])
@pytest.mark.parametrize("follow_links", [False, True])
def test_no_spelling_leads_out(tree: Path, path: str, follow_links: bool) -> None:
    path = path.format(root=tree.parent)
    with pytest.raises(OutsideFolder, match="lies outside the image folder '.*images'"):
        locate(path, str(tree), follow_links=follow_links)


@pytest.mark.parametrize("path", ["file.png", "folder/c.png"])
def test_links_lead_out_only_if_allowed(tree: Path, path: str) -> None:
    with pytest.raises(OutsideFolder, match="set `follow_links=True`"):
        locate(path, str(tree))
    assert os.path.samefile(locate(path, str(tree), follow_links=True), tree / path)


def test_without_a_folder_any_path_is_right(tree: Path) -> None:
    assert locate(str(tree / "../secret.png"))


def test_what_is_no_usable_file(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingImage, match=r"no.png' cannot be read: No such file"):
        locate("no.png", str(tree))
    with pytest.raises(MissingImage, match="cannot be read: File name too long"):
        locate("x" * 5000, str(tree))
    with pytest.raises(UserError, match=r"sub' is not an image file"):
        locate("sub", str(tree))
    monkeypatch.setattr(paths, "MAX_BYTES", 0)
    with pytest.raises(UserError, match=r"a.png' has 1 bytes; the limit is 0"):
        locate("a.png", str(tree))
