"""Any format to any other: the same bits there and back, one dtype, and clear refusals."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_tools.converters import convert as module
from llava_tools.converters.convert import choose_dtype, convert
from llava_tools.converters.writer import Writer
from llava_tools.errors import UserError
from llava_tools.model.source import Source, detect, open_source
from tests.model.checkpoints import as_zero, edit_json, make_run

Exported = Callable[[str, str], Path]
FORMATS = ("xtuner", "llava", "hf")


def assert_same(found: Source, wanted: Source) -> None:
    """All tensors equal, embeddings in the rows that both have."""
    assert set(found.tensors) == set(wanted.tensors)
    for name, tensor in wanted.tensors.items():
        value = found.tensors[name].read()
        assert torch.equal(value[: tensor.shape[0]] if tensor.shape else value, tensor.read()), name


@pytest.mark.parametrize("name", ["llama3", "vicuna"])
@pytest.mark.parametrize("path", list(itertools.permutations(FORMATS, 2)), ids="-".join)
def test_there_and_back_gives_the_same_bits(
    exported: Exported, tmp_path: Path, name: str, path: tuple[str, str]
) -> None:
    start, other = path
    origin = exported(name, start)
    convert(origin, tmp_path / "llava-other", other)
    convert(tmp_path / "llava-other", tmp_path / "llava-back", start)
    found, wanted = open_source(tmp_path / "llava-back"), open_source(origin)
    assert_same(found, wanted)
    assert detect(tmp_path / "llava-back") == start
    assert found.prompt_template == wanted.prompt_template
    assert found.visual_select_layer == wanted.visual_select_layer
    assert found.projector_config == wanted.projector_config
    assert found.image_processor == wanted.image_processor or "hf" in path


@pytest.mark.parametrize("to", FORMATS)
def test_from_the_checkpoint_or_by_way_of_xtuner_is_the_same(
    exported: Exported, tmp_path: Path, to: str
) -> None:
    convert(exported("phi3", "xtuner"), tmp_path / "llava", to)
    assert_same(open_source(tmp_path / "llava"), open_source(exported("phi3", to)))
    for file in ("config.json", "generation_config.json"):
        assert (tmp_path / "llava" / file).read_text() == (
            exported("phi3", to) / file
        ).read_text().replace(str(exported("phi3", to)), str(tmp_path / "llava"))


def test_a_deepspeed_directory_is_a_checkpoint(parts: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", parts)
    wanted = {name: tensor.read().clone() for name, tensor in open_source(run).tensors.items()}
    as_zero(run, 2)
    for source in (run, run / "mp_rank_00_model_states.pt"):
        convert(source, tmp_path / "out", "xtuner", dtype="fp32", overwrite=True)
        found = open_source(tmp_path / "out").tensors
        assert all(torch.equal(found[name].read(), tensor) for name, tensor in wanted.items())


def dtypes(folder: Path) -> set[torch.dtype]:
    return {t.dtype for file in folder.rglob("*.safetensors") for t in load_file(file).values()}


@pytest.mark.parametrize(
    ("name", "kind"),
    [(None, torch.float16), ("auto", torch.float16), ("keep", torch.float32)]
    + [("bf16", torch.bfloat16), ("float32", torch.float32)],
)
def test_a_checkpoint_is_exported_in_one_dtype(
    runs: dict[str, Path], tmp_path: Path, name: str | None, kind: torch.dtype
) -> None:
    for to in FORMATS:
        report = convert(runs["vicuna"], tmp_path / f"llava-{to}", to, dtype=name)
        assert dtypes(tmp_path / f"llava-{to}") == {kind}
        assert report["dtype"] == str(kind).removeprefix("torch.")
        assert report["format"] == to and report["bytes"] > 0


def test_a_folder_keeps_the_dtype_of_its_llm(exported: Exported, tmp_path: Path) -> None:
    convert(exported("vicuna", "xtuner"), tmp_path / "half", "xtuner", dtype="bf16")
    tower = tmp_path / "half/visual_encoder/model.safetensors"  # as XTuner writes it: in fp32
    state = {name: tensor.float() for name, tensor in load_file(tower).items()}
    save_file(state, tower, {"format": "pt"})
    convert(tmp_path / "half", tmp_path / "hf", "hf")
    assert dtypes(tmp_path / "hf") == {torch.bfloat16}
    source = open_source(exported("vicuna", "xtuner"))
    assert choose_dtype(source, None) == torch.float32


def test_an_overflow_is_an_error_and_writes_nothing(parts: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", parts)
    saved = torch.load(run, weights_only=True)
    saved["state_dict"]["llm.model.norm.weight"][3] = 1e5
    torch.save(saved, run)
    with pytest.raises(UserError, match=r"norm.weight has values up to 1e\+05, which overflow"):
        convert(run, tmp_path / "x", "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    convert(run, tmp_path / "x", "hf", dtype="bf16")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ({"to": "lava"}, "Unknown format 'lava'", "Did you mean 'llava'?"),
        ({"to": "huggingface"}, "Unknown format 'huggingface'", "Known: gguf, hf, llava, xtuner."),
        ({"dtype": "fp61"}, "Unknown dtype 'fp61'", "Did you mean 'fp16'?"),
        ({"max_shard_size": "big"}, "'big' is no size", "2GB"),
        ({"src": "nowhere"}, "There is nothing at 'nowhere'", "Check the path."),
    ],
)
def test_wrong_arguments_are_named(
    runs: dict[str, Path], tmp_path: Path, arguments: dict[str, str], message: str, hint: str
) -> None:
    call: dict[str, Any] = {"src": runs["phi3"], "dst": tmp_path / "x", "to": "hf", **arguments}
    with pytest.raises(UserError) as error:
        convert(**call)
    assert message in error.value.message and hint in error.value.hint
    assert not (tmp_path / "x").exists()


def test_neither_source_nor_base_is_overwritten(
    runs: dict[str, Path], exported: Exported, parts: Path
) -> None:
    folder, run = exported("vicuna", "xtuner"), runs["vicuna"]
    targets = [(folder, folder), (run, parts / "clip"), (run, parts / "vicuna"), (run, run.parent)]
    for source, target in targets:
        before = sorted(path.name for path in target.iterdir())
        with pytest.raises(UserError, match="is or holds what is being read"):
            convert(source, target, "hf", overwrite=True)
        assert sorted(path.name for path in target.iterdir()) == before


def test_an_existing_folder_is_replaced_only_on_demand(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    convert(runs["vicuna"], tmp_path / "x", "xtuner")
    with pytest.raises(UserError, match="is there already"):
        convert(runs["vicuna"], tmp_path / "x", "hf")
    assert detect(tmp_path / "x") == "xtuner"
    convert(runs["vicuna"], tmp_path / "x", "hf", overwrite=True)
    assert detect(tmp_path / "x") == "hf"
    assert not (tmp_path / "x/projector").exists()


@pytest.mark.parametrize("after", range(0, 90, 17))
def test_a_disk_that_fills_up_leaves_nothing(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    written = itertools.count()

    def advance(self: Writer, count: int) -> None:
        if next(written) == after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Writer, "advance", advance)
    monkeypatch.setattr(module, "Writer", _without_callback)
    with pytest.raises(UserError, match="The disk of '.*' is full; nothing was written"):
        convert(runs["vicuna"], tmp_path / "x", "hf")
    assert list(tmp_path.iterdir()) == []


def _without_callback(*arguments: Any) -> Writer:
    writer = Writer(*arguments[:4])
    del writer.__dict__["advance"]  # so that the class's own is used
    return writer


def test_a_broken_checkpoint_is_named_and_writes_nothing(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(runs["phi3"].parent, tmp_path / "run")
    file = tmp_path / "run/iter_1.pth"
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"hello", whole[:-1]):
        file.write_bytes(broken)
        with pytest.raises(UserError, match="iter_1.pth' is damaged or no PyTorch checkpoint"):
            convert(file, tmp_path / "x", "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_configs_and_overrides_choose_the_base(parts: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", parts, trains=())
    moved = shutil.move(run, tmp_path / "iter_1.pth")
    config = str(tmp_path / "run/config.py")
    options = [f"llm_name_or_path={parts / 'vicuna'}", "prompt_template=vicuna"]
    convert(moved, tmp_path / "x", "xtuner", config=config, cfg_options=options, dtype="fp32")
    source = open_source(tmp_path / "x")
    assert (source.llm_config["model_type"], source.prompt_template) == ("llama", "vicuna")


def test_a_class_that_only_version_5_knows_is_renamed(exported: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    shutil.copytree(exported("vicuna", "xtuner"), folder)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="TokenizersBackend")
    for to in FORMATS:
        convert(folder, tmp_path / f"llava-{to}", to)
        text = (tmp_path / f"llava-{to}/tokenizer_config.json").read_text()
        assert "PreTrainedTokenizerFast" in text and "TokenizersBackend" not in text


def test_a_folder_without_tokenizer_is_an_error(exported: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    shutil.copytree(exported("vicuna", "xtuner"), folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="holds no tokenizer"):
        convert(folder, tmp_path / "y", "llava")
