"""A LoRA run's checkpoint knows the weights it was trained on, from its first save on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, CLIPVisionModel

from llava_tools.cli.entry import run as command
from llava_tools.config import load_settings
from llava_tools.errors import UserError
from llava_tools.model.base_mark import pack_mark, saved_mark
from llava_tools.model.load import load_assistant
from llava_tools.train.bases import mark_bases
from llava_tools.train.build import build_model
from tests import tiny
from tests.train.runs import load, run, write_config

LORA = dict(r=4, lora_alpha=8)


@pytest.fixture
def trained(parts: Path, tmp_path: Path) -> Path:
    """The last checkpoint of a LoRA run whose base lies in a folder of its own."""
    shutil.copytree(parts / "phi3", tmp_path / "base")
    work = run(tmp_path, parts, llm_lora=LORA, llm_name_or_path=str(tmp_path / "base"))
    return work / "iter_3.pth"


def swap(base: Path, new: Path) -> None:
    """Put another model where a run's base was."""
    shutil.rmtree(base)
    shutil.copytree(new, base)


def test_another_base_is_refused_everywhere(
    trained: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(saved_mark(trained)) == 3
    load_assistant(trained)
    lora = dict(llm_lora=LORA, llm_name_or_path=str(tmp_path / "base"))
    later = write_config(tmp_path / "later", parts, pretrained_pth=str(trained), **lora)
    build_model(load_settings(str(later)))
    swap(tmp_path / "base", tiny.save_llm(tmp_path / "other", "phi3", seed=9))
    (tmp_path / "p.jsonl").write_text('{"prompt": "one?"}\n')
    out = str(tmp_path / "out")
    calls = [
        ["chat", str(trained), "--prompt", "one?"],
        ["generate", str(trained), str(tmp_path / "p.jsonl"), str(tmp_path / "a.jsonl")],
        ["convert", str(trained), out, "--to", "hf"],
        ["convert", str(trained), out, "--to", "xtuner", "--adapter-only"],
    ]
    for words in calls:
        assert command(words) == 2, words
        said = capsys.readouterr().err
        assert "iter_3.pth' was trained on other weights than these" in said, words
        assert "give that one back" in said and str(tmp_path / "base") in said
    assert not Path(out).exists()
    with pytest.raises(UserError, match="was trained on other weights than these"):
        run(tmp_path, parts, resume="auto", max_epochs=2, **lora)
    with pytest.raises(UserError, match="pretrained_pth .* was trained on other weights"):
        build_model(load_settings(str(later)))


def test_the_same_base_in_another_dtype_is_the_same(trained: Path, tmp_path: Path) -> None:
    before = load_assistant(trained, dtype="fp32").model.llm
    copy = tmp_path / "bf16"
    shutil.copytree(tmp_path / "base", copy)
    AutoModelForCausalLM.from_pretrained(copy, dtype=torch.bfloat16).save_pretrained(copy)
    swap(tmp_path / "base", copy)
    after = load_assistant(trained, dtype="fp32").model.llm
    ids = torch.arange(3, 30)[None]
    assert torch.allclose(before(ids).logits, after(ids).logits, atol=0.05)


def test_both_parts_are_marked_and_older_checkpoints_are_read(parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts / "clip", tmp_path / "tower")
    both = dict(llm_lora=LORA, visual_encoder_lora=LORA)
    work = run(tmp_path, parts, **both, visual_encoder_name_or_path=str(tmp_path / "tower"))
    names = sorted(saved_mark(work / "iter_3.pth"))
    assert [name.split(".")[0] for name in names] == ["llm"] * 3 + ["visual_encoder"] * 3
    other = tiny.save_vision(tmp_path / "other", seed=8)
    CLIPVisionModel.from_pretrained(other).save_pretrained(tmp_path / "tower")
    with pytest.raises(UserError, match="trained on other weights.*: visual_encoder"):
        load_assistant(work / "iter_3.pth")
    state = load(work / "iter_3.pth")
    del state["meta"]["base_mark"]
    torch.save(state, work / "iter_3.pth")
    assert saved_mark(work / "iter_3.pth") == {}
    load_assistant(work / "iter_3.pth")


@pytest.mark.parametrize("change", [{}, {"freeze_llm": False}])
def test_without_lora_there_is_nothing_to_mark(
    parts: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    work = run(tmp_path, parts, **change)
    assert "base_mark" not in load(work / "iter_3.pth")["meta"]


def test_a_base_that_cannot_be_marked_is_told(
    parts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = load_settings(str(write_config(tmp_path, parts, llm_lora=LORA)))
    model = build_model(settings)
    shutil.copytree(parts / "phi3", tmp_path / "gptq")
    file = tmp_path / "gptq/config.json"
    file.write_text(file.read_text().replace("{", '{"quantization_config": {},', 1))
    settings = load_settings(
        str(write_config(tmp_path, parts, llm_lora=LORA, llm_name_or_path=str(tmp_path / "gptq")))
    )
    file.write_text(file.read_text().replace("{}", '{"quant_method": "gptq"}', 1))
    assert mark_bases(model, settings) == {}
    assert "will not tell another base from this one" in caplog.text


def test_a_directory_of_deepspeed_is_read_too(tmp_path: Path) -> None:
    mark = {"llm.x": {"dtype": "float32", "values": [0.5]}}
    torch.save({"meta": pack_mark(mark)}, tmp_path / "mp_rank_00_model_states.pt")
    assert saved_mark(tmp_path) == mark
