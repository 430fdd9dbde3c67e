"""open_clip towers as HF CLIP: the features are open_clip's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from llava_tools.data.images import ImageProcessor
from llava_tools.errors import UserError
from llava_tools.model.open_clip import is_open_clip, load_open_clip, read_preprocessor_config
from llava_tools.model.vision import load_visual_encoder, read_num_patches

open_clip = pytest.importorskip("open_clip")

TEXT = dict(context_length=8, vocab_size=64, width=16, heads=2, layers=1)
VISION = dict(image_size=28, patch_size=14, width=24, head_width=12, layers=3, mlp_ratio=2.0)


def save(
    folder: Path,
    vision: dict[str, Any] | None = None,
    preprocess: dict[str, Any] | None = None,
    weights: str = "open_clip_model.safetensors",
    **model: Any,
) -> Path:
    """Write a random open_clip model in the layout of its hub repositories."""
    config = {"embed_dim": 16, "vision_cfg": VISION | (vision or {}), "text_cfg": TEXT, **model}
    torch.manual_seed(0)
    tower = open_clip.CLIP(**config)
    for parameter in tower.parameters():  # fresh norms are 1 and biases 0: a swap would not show
        torch.nn.init.normal_(parameter, std=0.3)
    folder.mkdir(parents=True)
    state = {name: tensor.contiguous() for name, tensor in tower.state_dict().items()}
    if weights.endswith(".safetensors"):
        save_file(state, folder / weights)
    else:
        torch.save(state, folder / weights)
    content = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder


def theirs(folder: Path) -> Any:
    return open_clip.create_model(f"local-dir:{folder}").eval()


PIXELS = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "options",
    [
        {"quick_gelu": True},
        {"quick_gelu": False},
        {"vision": {"act_kwargs": {"approximate": "tanh"}}},
        {"vision": {"norm_kwargs": {"eps": 0.01}}},
        {"vision": {"block_type": "custom"}},
        {"vision": {"pos_embed_type": "sin_cos_2d"}},
        {"weights": "open_clip_pytorch_model.bin"},
    ],
    ids=lambda options: json.dumps(options),
)
@torch.no_grad()
def test_every_hidden_state_equals_open_clip(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = save(tmp_path / "tower", **options)
    visual = theirs(folder).visual
    blocks = visual.forward_intermediates(PIXELS, output_fmt="NLC", output_extra_tokens=True)
    expected = [visual._embeds(PIXELS)] + [
        torch.cat(pair, dim=1)
        for pair in zip(
            blocks["image_intermediates_prefix"], blocks["image_intermediates"], strict=True
        )
    ]
    model, _ = load_open_clip(folder)
    output = model(pixel_values=PIXELS, output_hidden_states=True)
    assert len(output.hidden_states) == len(expected) == 4
    for ours, reference in zip(output.hidden_states, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.pooler_output @ visual.proj, visual(PIXELS))


@torch.no_grad()
def test_activations_are_told_apart(tmp_path: Path) -> None:
    """The tolerance above is far below what the wrong activation would change."""
    quick = load_open_clip(save(tmp_path / "quick", quick_gelu=True))[0]
    exact = load_open_clip(save(tmp_path / "exact", quick_gelu=False))[0]
    difference = quick(PIXELS).last_hidden_state - exact(PIXELS).last_hidden_state
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize("vision", [{}, {"image_size": 56}, {"patch_size": [7, 7]}])
def test_the_number_of_patches_is_told_without_weights(
    tmp_path: Path, vision: dict[str, Any]
) -> None:
    folder = save(tmp_path / "tower", vision)
    expected = load_visual_encoder(str(folder)).num_patches
    (folder / "open_clip_model.safetensors").unlink()
    assert read_num_patches(str(folder)) == expected == (4 if not vision else 16)


@torch.no_grad()
def test_the_vision_loader_takes_the_second_to_last_block(tmp_path: Path) -> None:
    folder = save(tmp_path / "tower")
    blocks = theirs(folder).visual.forward_intermediates(PIXELS, output_fmt="NLC")
    features = load_visual_encoder(str(folder))(PIXELS, -2)
    torch.testing.assert_close(features, blocks["image_intermediates"][-2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("preprocess", "size"),
    [
        ({}, (40, 40)),
        ({"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}, (56, 28)),
        ({"interpolation": "bilinear", "resize_mode": "squash"}, (50, 31)),
    ],
)
def test_preprocessing_equals_open_clip(
    tmp_path: Path, preprocess: dict[str, Any], size: tuple[int, int]
) -> None:
    folder = save(tmp_path / "tower", preprocess=preprocess)
    settings = open_clip.transform.PreprocessCfg(**theirs(folder).visual.preprocess_cfg)
    image = Image.effect_noise(size, 90).convert("RGB")
    expected = open_clip.transform.image_transform_v2(settings, is_train=False)(image)
    processor = ImageProcessor.from_dict(load_open_clip(folder)[1])
    torch.testing.assert_close(processor(image, False), expected, rtol=0, atol=1e-5)


def test_preprocessing_is_known_without_the_weights(tmp_path: Path) -> None:
    folder = save(tmp_path / "tower", preprocess={"mean": 0.5})
    settings = load_open_clip(folder)[1]
    (folder / "open_clip_model.safetensors").unlink()
    assert read_preprocessor_config(folder) == settings
    assert settings["image_mean"] == [0.5, 0.5, 0.5]
    assert read_preprocessor_config("open_clip:ViT-L-14-336/openai")["crop_size"]["height"] == 336


def test_what_is_open_clip(tmp_path: Path, parts: Path) -> None:
    folder = save(tmp_path / "tower")
    assert is_open_clip(folder) and is_open_clip("open_clip:ViT-B-32/openai")
    assert is_open_clip("hf-hub:timm/some-model")
    assert not is_open_clip(parts / "clip") and not is_open_clip("openai/clip-vit-large-patch14")
    for name in ("config.json", "model.safetensors"):  # published in both layouts: HF's is ready
        (folder / name).write_bytes((parts / "clip" / name).read_bytes())
    assert not is_open_clip(folder)


@torch.no_grad()
def test_a_named_model_with_a_file_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "tower", quick_gelu=True)
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    by_name = load_open_clip(f"open_clip:tiny/{folder / 'open_clip_model.safetensors'}")[0]
    by_folder = load_open_clip(folder)[0]
    assert torch.equal(by_name(PIXELS).last_hidden_state, by_folder(PIXELS).last_hidden_state)


def test_a_tag_brings_its_activation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's weights under a plain model name want quick_gelu; open_clip itself only warns."""
    folder = save(tmp_path / "tower", quick_gelu=True)
    weights = str(folder / "open_clip_model.safetensors")
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", {**config, "quick_gelu": False})
    tag = {"file": weights, "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"openai": tag})
    assert load_open_clip("open_clip:tiny/openai")[0].config.hidden_act == "quick_gelu"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"no_ln_pre": True}, "no norm before its blocks"),
        ({"pool_type": "avg"}, "pools by 'avg'"),
        ({"attentional_pool": True}, "pools by attention"),
        ({"ls_init_value": 0.1}, "layer scale"),
        ({"qk_norm": True}, "normalises queries and keys"),
        ({"scale_fc": True}, "norms inside its MLPs"),
        ({"layers": [1, 1, 1, 1]}, "ResNet"),
        ({"timm_model_name": "vit_tiny_patch16_224"}, "timm model"),
        ({"act_kwargs": {"inplace": True}}, "option 'inplace'"),
        ({"image_size": [28, 56]}, "28 x 56 pixels"),
    ],
)
def test_towers_that_hf_clip_cannot_express(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    content = {"model_cfg": {"embed_dim": 16, "vision_cfg": VISION | options, "text_cfg": TEXT}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=reason):
        load_open_clip(tmp_path)


def test_preprocessing_that_clip_cannot_express(tmp_path: Path) -> None:
    folder = save(tmp_path / "tower", preprocess={"resize_mode": "longest"})
    with pytest.raises(UserError, match="in the mode 'longest'"):
        load_open_clip(folder)


def test_weights_missing_or_of_another_model(tmp_path: Path) -> None:
    folder = save(tmp_path / "tower")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["layers"] = 4
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="open_clip could not load .*tower"):
        load_open_clip(folder)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match="open_clip could not load .*tower"):
        load_open_clip(folder)


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="knows no model 'ViT-B-33'") as caught:
        load_open_clip("open_clip:ViT-B-33/openai")
    assert "ViT-B-32" in caught.value.hint
    with pytest.raises(
        UserError, match="neither a tag of open_clip's ViT-B-32 nor a file"
    ) as caught:
        load_open_clip("open_clip:ViT-B-32/opena")
    assert "openai" in caught.value.hint
    with pytest.raises(UserError, match="No open_clip checkpoint at 'hf-hub:nobody/nothing'"):
        load_open_clip("hf-hub:nobody/nothing")
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(UserError, match="is no open_clip config"):
        load_open_clip(tmp_path)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "tower")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match="package open_clip cannot be imported") as caught:
        load_open_clip(folder)
    assert "llava-tools[open-clip]" in caught.value.hint
