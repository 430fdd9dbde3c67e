"""Finding configs, bases by relative read_base and by name, overrides, unreadable files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llava_tools.config import find_config, load_config, load_settings, recipes
from llava_tools.config.load import parse_overrides
from llava_tools.errors import UserError

RECIPE = "llava_phi3_mini_4k_instruct_clip_vit_large_p14_336_e1_gpu8_pretrain"
LEAST = (
    'llm_name_or_path = "a"\nprompt_template = "vicuna"\ndatasets = [dict(data_path="a.json")]\n'
)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_recipe_is_found_by_its_name_and_a_file_by_its_path(tmp_path: Path) -> None:
    assert find_config(RECIPE).name == f"{RECIPE}.py"
    assert find_config(f"{RECIPE}.py") == find_config(RECIPE)
    assert find_config(write(tmp_path / "my.py", LEAST)) == tmp_path / "my.py"
    assert find_config(str(find_config(RECIPE))) == find_config(RECIPE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (RECIPE.replace("pretrain", "pretrian"), f"Did you mean '{RECIPE}'?"),
        ("no/such/file.py", "There is no config 'no/such/file.py'"),
        ("pretrain", "There is no config 'pretrain'"),  # a base is no recipe
    ],
)
def test_an_unknown_config(name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        find_config(name)
    assert message in str(caught.value) and "config list" in caught.value.hint


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a.txt is not a config"):
        find_config(write(tmp_path / "a.txt", "x"))


def test_a_file_starts_from_a_recipe_by_its_name(tmp_path: Path) -> None:
    file = write(tmp_path / "my.py", f'base = "{RECIPE}"\nlr = 5e-4\n')
    settings, recipe = load_settings(file), load_settings(RECIPE)
    assert settings.lr == 5e-4 and recipe.lr == 1e-3
    assert settings.datasets == recipe.datasets and settings.batch_size == 32


def test_a_base_may_be_a_file_beside_and_dicts_merge(tmp_path: Path) -> None:
    write(tmp_path / "one.py", LEAST + "freeze_llm = True\nllm_lora = dict(r=8, lora_alpha=16)\n")
    write(tmp_path / "two.py", 'base = "one.py"\nllm_lora = dict(r=64)\nbetas = (0.9, 0.95)\n')
    settings = load_settings(write(tmp_path / "three.py", 'base = "two.py"\nseed = 3\n'))
    assert settings.llm_lora == {"r": 64, "lora_alpha": 16}
    assert settings.betas == (0.9, 0.95) and settings.seed == 3


def test_read_base_works_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write(tmp_path / "base" / "data.py", LEAST)
    head = "from mmengine.config import read_base\nwith read_base():\n"
    file = write(tmp_path / "my.py", f"{head}    from .base.data import *\nlr = 1.0\n")
    assert load_settings(file).lr == 1.0
    assert load_settings(file).datasets[0].data_path == "a.json"


def test_bases_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path / "one.py", 'base = "two.py"\n')
    file = write(tmp_path / "two.py", 'base = "one.py"\n')
    with pytest.raises(UserError, match="circle: two.py -> one.py -> two.py"):
        load_settings(file)


def test_a_base_that_is_no_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'base' must be the name or path of one config"):
        load_settings(write(tmp_path / "my.py", "base = 3\n"))


def test_helpers_are_no_settings(tmp_path: Path) -> None:
    text = "import os\n_root = '/data'\ndef _f(x): return x\ndef g(x): return x\n"
    text += LEAST.replace('"a.json"', "g(os.path.join(_root, 'a.json'))")
    settings = load_settings(write(tmp_path / "my.py", text))
    assert settings.datasets[0].data_path == "/data/a.json"


def test_a_config_may_be_json(tmp_path: Path) -> None:
    text = '{"llm_name_or_path": "a", "prompt_template": "b", "datasets": [{"data_path": "c"}]}'
    assert load_settings(write(tmp_path / "my.json", text)).prompt_template == "b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = \n", "my.py, line 1: this config cannot be read (SyntaxError"),
        ("lr = 1 / 0\n", "this config cannot be read (ZeroDivisionError: division by zero)"),
        ("import sys\nsys.exit(3)\n", "this config cannot be read (SystemExit: 3)"),
        (
            "from mmengine.config import read_base\nwith read_base():\n    from .nope import *\n",
            "nope",
        ),
        ("filename = 'x'\n", "filename is reserved for config file"),
    ],
)
def test_an_unreadable_config(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_settings(write(tmp_path / "my.py", text))
    assert message in str(caught.value) and "my.py" in str(caught.value) and caught.value.hint


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("k=1", 1),
        ("k=1e-4", 1e-4),
        ("k=true", True),
        ("k=None", None),
        ("k=[1,2]", [1, 2]),
        ("k=1,2", [1, 2]),
        ("k=(a,b)", ("a", "b")),
        ("k=[(1,2),[a,b],c]", [(1, 2), ["a", "b"], "c"]),
        ("k=a b c", "a b c"),
        ("k='a, b'", "a, b"),
        ("k=x=y", "x=y"),
        ("k=", ""),
    ],
)
def test_overrides_are_read_as_mmengine_reads_them(override: str, value: Any) -> None:
    assert parse_overrides([override]) == {"k": value}


@pytest.mark.parametrize("override", ["k", "=1", "k=[1,2"])
def test_malformed_overrides(override: str) -> None:
    with pytest.raises(UserError, match="--cfg-options: "):
        parse_overrides([override])


def test_overrides_reach_into_lists_and_dicts() -> None:
    settings = load_settings(
        RECIPE, ["lr=1e-4", "datasets.0.data_path=x y.json", "llm_lora.r=8", "betas=[0.8,0.9]"]
    )
    assert settings.lr == 1e-4 and settings.betas == (0.8, 0.9)
    assert settings.datasets[0].data_path == "x y.json"
    assert settings.datasets[0].image_folder.endswith("images")
    assert settings.llm_lora == {"r": 8}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batchsize=4", "--cfg-options: unknown key 'batchsize'."),
        ("batch_size=-1", "--cfg-options: 'batch_size' must be 1 or more, not -1."),
        ("datasets.7.rows=1", "--cfg-options: datasets.7.rows=1 does not fit"),
        ("lr.x=1", "--cfg-options: lr.x=1 does not fit"),
    ],
)
def test_overrides_that_do_not_fit(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_settings(RECIPE, [override])
    assert message in str(caught.value) and caught.value.hint


def test_load_config_gives_attributes() -> None:
    config = load_config(RECIPE, ["max_epochs=3"])
    assert (config.max_epochs, config.datasets[0].rows) == (3, 558128)


def test_recipes_work_from_another_folder_without_heavy_imports(tmp_path: Path) -> None:
    code = (
        "import sys; from llava_tools.config import load_settings, recipes;"
        f"load_settings('{RECIPE}'); assert recipes();"
        "assert not {'torch', 'transformers', 'cv2', 'matplotlib'} & set(sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=environment)


def test_bases_and_packages_are_not_listed() -> None:
    assert RECIPE in recipes()
    assert not {"pretrain", "finetune", "__init__"} & set(recipes())
