"""Command lines reach the functions behind them: ours, and XTuner's with the first word changed.

Each call is bound to the signature of the real function, which is not run.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

from llava_tools.cli.entry import run

CFG = "llava_phi3_mini_4k_instruct_clip_vit_large_p14_336_e1_gpu8_pretrain"
LAUNCH = "train.launch:launch"
CONVERT = "converters.convert:convert"
SESSION = "chat.start:open_session"
EVALUATE = "eval.run:evaluate"

CASES: list[tuple[str, str, dict[str, Any]]] = [
    # XTuner's README and tools
    (
        f"train {CFG} --deepspeed deepspeed_zero2 --seed 1024",
        LAUNCH,
        {"config": CFG, "deepspeed": "deepspeed_zero2", "seed": 1024, "resume": None},
    ),
    (
        f"train {CFG} --work-dir w --launcher slurm --cfg-options lr=1 betas=[0,1]",
        LAUNCH,
        {"work_dir": "w", "launcher": "slurm", "cfg_options": ["lr=1", "betas=[0,1]"]},
    ),
    (f"train {CFG} --resume w/iter_5.pth", LAUNCH, {"resume": "w/iter_5.pth"}),
    (f"train {CFG} --resume", LAUNCH, {"resume": "auto"}),
    (
        f"convert pth_to_hf {CFG} iter_5.pth out --fp32 --save-format official",
        "converters.aliases:pth_to_hf",
        {"config": CFG, "pth": "iter_5.pth", "save_format": "official", "fp32": True},
    ),
    (
        f"convert pth_to_hf {CFG} i.pth out --safe-serialization --max-shard-size 1GB "
        "--cfg-options a=1",
        "converters.aliases:pth_to_hf",
        {"max_shard_size": "1GB", "cfg_options": ["a=1"], "fp32": False},
    ),
    (
        "convert phi_to_llama --phi_path phi --save_path out",
        "converters.aliases:phi_to_llama",
        {"phi_path": "phi", "save_path": Path("out")},
    ),
    (
        "convert xtuner_to_llava --text_model_id a --vision_model_id b --projector_weight c "
        "--save_path d",
        "converters.aliases:xtuner_to_llava",
        {"text_model_id": "a", "vision_model_id": "b", "projector_weight": "c"},
    ),
    (
        "convert xtuner-to-hf --text-model-id a --vision-model-id b --projector-weight c "
        "--save-path d",
        "converters.aliases:xtuner_to_hf",
        {"save_path": Path("d"), "max_shard_size": "2GB", "overwrite": False},
    ),
    (
        "chat llm --visual-encoder clip --llava dir --prompt-template phi3_chat --image a.png "
        "--visual-select-layer -3 --torch-dtype bf16",
        SESSION,
        {
            "model": "llm",
            "visual_encoder": "clip",
            "llava": "dir",
            "template": "phi3_chat",
            "visual_select_layer": -3,
            "dtype": "bf16",
        },
    ),
    (
        "mmbench m --data-path d.tsv --work-dir w --stop-words a b --max-new-tokens 9",
        EVALUATE,
        {
            "benchmark": "mmbench",
            "model_path": "m",
            "data_path": Path("d.tsv"),
            "stop_words": ["a", "b"],
            "max_new_tokens": 9,
            "assistant": None,
        },
    ),
    ("mmbench llm --llava dir --visual-encoder clip --data-path d", SESSION, {"llava": "dir"}),
    (f"log-dataset {CFG}", "config:load_settings", {"check_files": False, "overrides": []}),
    # ours
    ("quickstart --work-dir w --seed 2", "quickstart.run:quickstart", {"work_dir": Path("w")}),
    (
        f"data show {CFG} --cfg-options datasets.0.max_rows=3",
        "config:load_settings",
        {"name_or_path": CFG, "overrides": ["datasets.0.max_rows=3"]},
    ),
    (
        "convert w/iter_6.pth out --to hf --verify --overwrite --dtype bf16",
        CONVERT,
        {"src": "w/iter_6.pth", "dst": Path("out"), "to": "hf", "verify": True, "dtype": "bf16"},
    ),
    ("convert --to llava a b", CONVERT, {"to": "llava", "dtype": None, "verify": False}),
    ("inspect path --config c", "model.source:inspect", {"path": "path", "config": "c"}),
    ("chat m --prompt hi --config c", SESSION, {"config": "c", "llava": None, "device": "auto"}),
    ("eval mmbench m --data-path d --blank-images", EVALUATE, {"blank_images": True}),
    (
        "eval score mmbench p.xlsx --data-path d --protocol xtuner",
        "eval.report:score_file",
        {"predictions": Path("p.xlsx"), "protocol": "xtuner", "work_dir": None},
    ),
    ("eval report a b", "eval.report:load_report", {"folder": Path("a")}),
]


class Reached(BaseException):
    """Ends a command at the function that the test looks for."""


@pytest.mark.parametrize(("line", "target", "expected"), CASES, ids=[case[0] for case in CASES])
def test_a_command_reaches_its_function(
    line: str, target: str, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module_name, name = target.split(":")
    module = importlib.import_module(f"llava_tools.{module_name}")
    signature = inspect.signature(getattr(module, name))
    found: dict[str, Any] = {}

    def record(*arguments: Any, **options: Any) -> None:
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        found.update(bound.arguments)
        raise Reached

    monkeypatch.setattr(module, name, record)
    with pytest.raises(Reached):
        run(line.split())
    assert {key: found[key] for key in expected} == expected


def test_the_exit_code_of_a_run_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = importlib.import_module("llava_tools.train.launch")
    monkeypatch.setattr(launch, "launch", lambda *arguments, **options: 143)
    assert run(["train", CFG]) == 143


def test_json_needs_a_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["chat", "m", "--json"]) == 2
    assert "there is no --prompt" in capsys.readouterr().err


def test_inspect_prints_parts(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(parts / "phi3")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"path: {parts / 'phi3'}" and out[1] == "format: hf"
    assert out[2] == "parts:" and out[3].split()[0] == "llm" and "float32" in out[3]
    assert run(["inspect", str(parts / "phi3"), "--json"]) == 0
    assert capsys.readouterr().out.startswith('{"path": ')


def test_what_lies_there_may_be_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "no/such/model"]) == 2
    assert "There is nothing at 'no/such/model'" in capsys.readouterr().err
