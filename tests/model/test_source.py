"""Opening models: each format is recognised, complete, and refused by name when it is not."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_tools.data.preprocessing import read_config
from llava_tools.errors import UserError
from llava_tools.model.parts import read_vision, resolve_folder
from llava_tools.model.source import detect, inspect, open_parts, open_source, read_checkpoint
from tests.model.checkpoints import changed, edit_json, make_run, projector, resave
from tests.model.test_zero import zero2


@pytest.fixture(scope="module")
def run(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finetune run of Phi-3 with a frozen CLIP."""
    return make_run(tmp_path_factory.mktemp("source") / "run", parts)


def copy(parts: Path, name: str, to: Path) -> Path:
    shutil.copytree(parts / name, to)
    return to


def test_formats_are_detected(run: Path, parts: Path, tmp_path: Path) -> None:
    assert detect(run) == "pth"
    assert detect(zero2(tmp_path / "iter_2.pth", 1)) == "pth"
    assert detect(parts / "phi3") == "hf"
    folder = copy(parts, "vicuna", tmp_path / "x")
    (folder / "projector").mkdir()
    assert detect(folder) == "xtuner"
    (folder / "projector").rmdir()
    edit_json(folder / "config.json", model_type="llava")
    assert detect(folder) == "hf"
    edit_json(folder / "config.json", mm_vision_tower="openai/clip")
    assert detect(folder) == "llava"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "There is nothing at"),
        ("clip", "a model of type 'clip_vision_model'"),
        ("images", "a folder with 0.png, 1.png"),
        ("llava.json", "a file ending in '.json'"),
    ],
)
def test_what_is_no_model_is_named(parts: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        detect(parts / name)


def test_a_checkpoint_is_laid_over_its_base(run: Path, parts: Path) -> None:
    source = open_source(run)  # by the config.py beside it
    assert (source.format, source.prompt_template) == ("pth", "phi3_chat")
    assert source.pad_image_to_square and source.visual_select_layer == -2
    trained = torch.load(run, weights_only=True)["state_dict"]
    for name, tensor in trained.items():
        assert torch.equal(source.tensors[name].read(), tensor)
    base = load_file(parts / "clip/model.safetensors")
    for name, tensor in base.items():
        frozen = source.tensors[f"visual_encoder.vision_model.{name}"]
        assert torch.equal(frozen.read(), tensor)
    assert len(source.tensors) == len(trained) + len(base)
    assert source.image_processor and source.image_processor["crop_size"]["height"] == 28
    assert source.projector_config == {
        "model_type": "projector",
        "visual_hidden_size": 24,
        "llm_hidden_size": 32,
        "depth": 2,
        "hidden_act": "gelu",
        "bias": True,
    }


def test_a_checkpoint_needs_its_config(run: Path, tmp_path: Path) -> None:
    lone = Path(shutil.copy(run, tmp_path))
    with pytest.raises(UserError, match="which models it started from is unknown"):
        open_source(lone)
    assert len(open_source(lone, str(run.parent / "config.py")).tensors) > 50
    other = open_source(run, overrides=["visual_select_layer=-1"])
    assert other.visual_select_layer == -1


def test_old_and_new_names_of_the_tower_are_one(parts: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", parts, trains=("llm", "visual_encoder"))
    wanted = {name: tensor.read().clone() for name, tensor in open_source(run).tensors.items()}
    saved = torch.load(run, weights_only=True)
    new = {
        name.replace("visual_encoder.vision_model.", "visual_encoder."): tensor
        for name, tensor in saved["state_dict"].items()
    }
    torch.save(new, run)  # also without the level `state_dict`
    found = open_source(run).tensors
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name].read(), wanted[name]) for name in wanted)


def test_a_tied_output_embedding_has_one_name(parts: Path, tmp_path: Path) -> None:
    folder = copy(parts, "vicuna", tmp_path / "vicuna")
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, folder / "model.safetensors")
    edit_json(folder / "config.json", tie_word_embeddings=True)
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
    assert "llm.lm_head.weight" not in open_source(folder).tensors
    run = make_run(tmp_path / "run", tmp_path, "vicuna", None, datasets=[{"data_path": "x.json"}])
    embedding = "llm.model.embed_tokens.weight"
    resave(run, lambda state: state.update({"llm.lm_head.weight": state[embedding].clone()}))
    source = open_source(run)
    assert "llm.lm_head.weight" not in source.tensors
    wanted = source.tensors[embedding].read().clone()
    resave(run, lambda state: state.pop(embedding))
    assert torch.equal(open_source(run).tensors[embedding].read(), wanted)
    state["lm_head.weight"][0] += 1
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match="embeddings are tied, but holds two different ones"):
        open_source(folder)


def test_text_only_models_are_sources(parts: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", parts, "llama3", None)
    for source in (open_source(run), open_source(parts / "llama3")):
        assert source.vision_config is None and source.projector_config is None
        assert source.image_processor is None
        assert all(name.startswith("llm.") for name in source.tensors)


def test_an_xtuner_folder_takes_frozen_parts_from_the_config(parts: Path, tmp_path: Path) -> None:
    folder, run = tmp_path / "x", make_run(tmp_path / "run", parts)
    (folder / "projector").mkdir(parents=True)
    state = {name.removeprefix("projector."): t for name, t in projector(24, 32).items()}
    save_file(state, folder / "projector/model.safetensors")
    with pytest.raises(UserError, match="which models it started from is unknown"):
        open_source(folder)
    source = open_source(folder, str(run.parent / "config.py"))
    assert (source.format, source.prompt_template) == ("xtuner", "phi3_chat")
    assert len(source.tensors) == 15 + 55 + 4
    longer = ["max_position_embeddings=1500"]  # the frozen LLM was stretched in training, too
    source = open_source(folder, str(run.parent / "config.py"), longer)
    assert source.llm_config["max_position_embeddings"] == 1500


def test_parts_of_different_widths_are_an_error(parts: Path, tmp_path: Path) -> None:
    state = {name.removeprefix("projector."): t for name, t in projector(20, 32).items()}
    save_file(state, tmp_path / "p.safetensors")
    with pytest.raises(UserError, match="the vision tower is 24 wide, the projector expects 20"):
        open_parts(parts / "phi3", parts / "clip", tmp_path / "p.safetensors")
    with pytest.raises(UserError, match="No projector at"):
        open_parts(parts / "phi3", parts / "clip", tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="of type 'phi3', not a vision tower"):
        open_parts(parts / "phi3", parts / "phi3", tmp_path / "p.safetensors")


def test_names_of_the_hub_come_from_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="'someone/model' is no folder, and there is no such model"):
        resolve_folder("someone/model")
    with pytest.raises(UserError, match="is no folder"):
        resolve_folder("/no/such/folder")
    repository = tmp_path / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("abc")
    shutil.copytree(parts / "phi3", repository / "snapshots/abc")
    assert resolve_folder("someone/model") == repository / "snapshots/abc"
    assert len(open_source("someone/model").tensors) == 15
    with pytest.raises(UserError, match="'someone/other' is no folder, and there is no such model"):
        open_source("someone/other")


def test_a_file_that_changes_under_the_reader_is_an_error(parts: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", parts)
    tensors = read_checkpoint(run)
    torch.save({}, run)
    with pytest.raises(UserError, match="became shorter while it was read"):
        next(iter(tensors.values())).read()


def test_broken_folders_are_named(parts: Path, tmp_path: Path) -> None:
    folder = copy(parts, "phi3", tmp_path / "x")
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json' cannot be read"):
        open_source(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(UserError, match="holds no JSON object"):
        open_source(folder)
    folder = copy(parts, "phi3", tmp_path / "y")
    edit_json(folder / "config.json", quantization_config={"bits": 4})
    with pytest.raises(UserError, match="quantized weights"):
        open_source(folder)
    folder = copy(parts, "phi3", tmp_path / "z")
    edit_json(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(UserError, match="lacks a weight: llm.model.layers.2"):
        open_source(folder)
    edit_json(folder / "config.json", num_hidden_layers=2**62)  # at once
    with pytest.raises(UserError, match="lacks a weight: llm.model.layers.2"):
        open_source(folder)


@pytest.mark.parametrize("value", ["x", [], {}, -1, "", 1e300])
@pytest.mark.parametrize("key", ["num_attention_heads", "hidden_size", "num_hidden_layers"])
def test_values_of_a_wrong_kind_in_a_config_are_no_bug(
    parts: Path, tmp_path: Path, key: str, value: object
) -> None:
    folder = copy(parts, "phi3", tmp_path / "x")
    edit_json(folder / "config.json", **{key: value})
    with suppress(UserError):  # where the value counts for the weights
        open_source(folder)


def test_a_work_dir_names_its_newest_checkpoint(run: Path) -> None:
    with pytest.raises(UserError, match="is no LLaVA that is known here") as caught:
        detect(run.parent)
    assert caught.value.hint == f"Give one of its checkpoints, for example {run}."


def test_inspect_tells_what_is_there(run: Path, parts: Path, tmp_path: Path) -> None:
    report = inspect(run)
    assert json.loads(json.dumps(report)) == report
    assert report["format"] == "pth" and set(report["trained"]) == {"llm", "projector"}
    assert report["parts"]["visual_encoder"]["tensors"] == 55
    assert report["visual_encoder"]["select_layer"] == -2
    assert report["prompt_template"] == "phi3_chat"
    lone = Path(shutil.copy(run, tmp_path))
    assert set(inspect(lone)) == {"path", "format", "trained"}
    text = inspect(parts / "phi3")
    assert text["llm"]["model_type"] == "phi3" and "projector" not in text
    size = sum(tensor.numel() for tensor in load_file(parts / "phi3/model.safetensors").values())
    assert text["parts"]["llm"]["parameters"] == size


def test_export_takes_the_preprocessing_that_training_took(parts: Path, tmp_path: Path) -> None:
    """A folder may hold both files of the two generations, of which one says nothing."""
    folder = copy(parts, "clip", tmp_path / "clip")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({"processor_class": "x"}))
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert read_vision(folder).image_processor == settings == read_config(str(folder))[0]
    (folder / "processor_config.json").unlink()
    assert read_vision(folder).image_processor is None


def test_stretched_positions_reach_the_config(parts: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", parts, max_position_embeddings=1500)
    config = open_source(run).llm_config
    assert config["max_position_embeddings"] == 1500
    assert config["rope_parameters"]["rope_type"] == "linear"
    assert config["rope_parameters"]["factor"] == 3.0


def test_changed_really_changes() -> None:
    from llava_tools.model.lazy import LazyTensor

    tensor = torch.zeros(3)
    assert not torch.equal(changed({"a": LazyTensor.of(tensor)})["a"], tensor)
