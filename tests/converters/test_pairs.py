"""Every pair of formats, for every family and way of training: there and back, bit for bit."""

from __future__ import annotations

import functools
import itertools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, CLIPVisionModel

from llava_tools.converters.convert import convert
from llava_tools.errors import UserError
from llava_tools.model.source import Source, detect, open_source
from tests import tiny
from tests.converters.test_convert import assert_same
from tests.model.checkpoints import as_zero, edit_json, make_run, tie
from tests.model.test_lora import LORA, adapt, put

FORMATS = ("xtuner", "llava", "hf")
FAMILIES = ("phi3", "phi3-gqa", "phi3-tied", "llama3", "vicuna", "vicuna-tied")
TRAINED = ("frozen", "full", "lora")
Runs = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def runs_of(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Checkpoints by family and way of training, each made once."""
    root = tmp_path_factory.mktemp("pairs")
    for name in FAMILIES:
        family, _, kind = name.partition("-")
        tiny.save_llm(root / "parts" / name, family, kv_heads=2 if kind == "gqa" else 4)
        if kind == "tied":
            tie(root / "parts" / name)
    shutil.copytree(parts / "clip", root / "parts/clip")

    @functools.cache
    def make(name: str, trained: str) -> Path:
        lora = {"llm_lora": LORA, "visual_encoder_lora": LORA} if trained == "lora" else {}
        trains = ("llm", "visual_encoder") if trained == "full" else ()
        options: dict[str, Any] = {"trains": trains, "datasets": [{"data_path": "x.json"}]}
        run = make_run(root / f"{name}-{trained}", root / "parts", name, **options, **lora)
        if lora:
            tower, _ = adapt("visual_encoder", CLIPVisionModel.from_pretrained(parts / "clip"))
            put(run, {f"visual_encoder.{key}": tensor for key, tensor in tower.items()})
            llm = AutoModelForCausalLM.from_pretrained(root / "parts" / name)
            put(run, {f"llm.{key}": tensor for key, tensor in adapt("llm", llm)[0].items()})
        return run

    return make


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("name", FAMILIES)
def test_there_and_back_is_the_same(runs_of: Runs, tmp_path: Path, name: str, trained: str) -> None:
    """The checkpoint to A, to B and back to A, for every A and B."""
    run = runs_of(name, trained)
    for start in FORMATS:
        convert(run, tmp_path / f"llava-{start}", start, dtype="fp32")
    for start, other in itertools.permutations(FORMATS, 2):
        origin, there, back = (tmp_path / f"llava-{x}" for x in (start, "there", "back"))
        convert(origin, there, other, overwrite=True)
        # Phi-3 is a Llama in llava and hf: the way back to it is asked for.
        llm = "phi3" if start == "xtuner" and name.startswith("phi3") else None
        convert(there, back, start, overwrite=True, llm=llm)
        found, wanted = open_source(back), open_source(origin)
        assert_same(found, wanted)
        assert detect(back) == start
        assert_config(found, wanted)
    assert_same(open_source(tmp_path / "llava-xtuner"), open_source(run))


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeeds_directories_give_what_the_file_gives(
    runs_of: Runs, tmp_path: Path, trained: str, stage: int
) -> None:
    """Byte for byte, whatever was trained; nothing here imports deepspeed."""
    run, to = runs_of("phi3", trained), FORMATS[stage - 1]
    shutil.copytree(run.parent, tmp_path / "run")
    folder = as_zero(tmp_path / "run" / run.name, stage, world=3)
    assert_same(open_source(folder), open_source(run))
    for source, name in ((run, "file"), (folder, "folder")):
        convert(source, tmp_path / name / "llava", to, dtype="fp32")
    written = sorted((tmp_path / "file/llava").rglob("*.safetensors"))
    for file in written:
        other = tmp_path / "folder" / file.relative_to(tmp_path / "file")
        assert file.read_bytes() == other.read_bytes(), file
    assert written


def assert_config(found: Source, wanted: Source) -> None:
    keys = ("model_type", "num_key_value_heads", "tie_word_embeddings", "rms_norm_eps")
    for key in keys:
        assert found.llm_config.get(key) == wanted.llm_config.get(key), key
    assert found.projector_config == wanted.projector_config
    assert found.visual_select_layer == wanted.visual_select_layer


LONG = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "longrope": ({"rope_scaling": LONG, "rope_parameters": None}, "positions by 'longrope'"),
    "thirds": ({"num_key_value_heads": 2}, r"qkv_proj.weight has 96 rows"),
    "quantised": ({"quantization_config": {"load_in_4bit": True}}, "holds quantized weights"),
}


@pytest.mark.parametrize("to", ["llava", "hf"])
@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_held_is_refused_with_the_reason(
    parts: Path, tmp_path: Path, why: str, to: str
) -> None:
    folder = tiny.save_xtuner(tmp_path / "x", parts)
    changes, message = REFUSED[why]
    edit_json(folder / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        convert(folder, tmp_path / "llava", to)
    assert not (tmp_path / "llava").exists()


def test_a_deep_projector_fits_all_but_hf(parts: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", parts, "vicuna", depth=3)
    with pytest.raises(UserError, match="a projector of depth 3; the hf format knows depth 2 only"):
        convert(run, tmp_path / "x", "hf")
    convert(run, tmp_path / "xtuner", "xtuner", dtype="fp32")
    convert(tmp_path / "xtuner", tmp_path / "llava", "llava")
    convert(tmp_path / "llava", tmp_path / "back", "xtuner")
    assert_same(open_source(tmp_path / "back"), open_source(run))


class HistoryBuffer:
    """Stands in for mmengine's, which pickles its own methods."""

    def __init__(self) -> None:
        self.log = [1.0]
        self.ways = {"mean": self.mean}

    def mean(self) -> None:
        """Only its name is pickled."""


@pytest.mark.parametrize("as_folder", [False, True])
def test_xtuners_own_checkpoints_are_read_without_mmengine(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_folder: bool
) -> None:
    """With the objects that its runner pickles beside the weights; of DeepSpeed, a folder."""
    run = make_run(tmp_path / "run", parts)
    wanted = {name: t.read().clone() for name, t in open_source(run).tensors.items()}
    module = ModuleType("mmengine_history_buffer")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(module, "HistoryBuffer", HistoryBuffer, raising=False)
    monkeypatch.setattr(HistoryBuffer, "__module__", module.__name__)
    saved = torch.load(run, weights_only=True)
    saved["message_hub"] = {"log_scalars": {"train/loss": HistoryBuffer()}}
    saved["meta"] |= {"cfg": "model = dict()", "seed": 1, "dataset_meta": None}
    saved["param_schedulers"] = [{"last_step": 6, "_last_lr": [1e-5]}]
    torch.save(saved, run)
    if as_folder:
        as_zero(run, 2)
    monkeypatch.undo()
    held = run / "mp_rank_00_model_states.pt" if as_folder else run
    with pytest.raises(Exception, match="weights_only|Weights only"):
        torch.load(held, weights_only=True)
    convert(run, tmp_path / "x", "xtuner", dtype="fp32")
    found = open_source(tmp_path / "x").tensors
    assert all(torch.equal(found[name].read(), tensor) for name, tensor in wanted.items())
