"""`eval lm` scores as the definitions say: loops over plain transformers beside lm-eval's tasks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_tools.errors import UserError
from llava_tools.eval import lm
from llava_tools.eval.lm import Options, evaluate
from llava_tools.model.adapted import read_llm_adapter
from llava_tools.model.base_mark import base_mark
from llava_tools.model.load import load_llm, load_tokenizer
from llava_tools.model.parts import read_llm
from tests import tiny
from tests.eval.lm_tasks_local import SCENES, SCHEMAS, TRUE, run, write_task
from tests.model.test_adapted import write_adapter

pytest.importorskip("lm_eval")


def score(model: Any, tokenizer: Any, context: str, ending: str) -> float:
    """Sum of the log-probabilities of the ending's tokens.

    By lm-eval's rule the context is tokenised alone, so that it is the same for all endings.
    """
    head, whole = (tokenizer(text)["input_ids"] for text in (context, context + ending))
    whole = head + whole[len(head) :]
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(logits[i - 1, whole[i]]) for i in range(len(head), len(whole)))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tasks")
    write_task(root, "truthfulqa_mc2", TRUE)
    write_task(root, "winogrande", SCHEMAS, SCHEMAS[2:])
    write_task(root, "hellaswag", SCENES, SCENES[2:])
    return root


def truth(model: Any, tokenizer: Any, tasks: Path) -> float:
    """The mean over the questions of the probability that is on true answers."""
    from llava_tools.eval.lm_tasks import task_manager

    task = task_manager(tasks, ["truthfulqa_mc2"]).load(["truthfulqa_mc2"])
    task = task["tasks"]["truthfulqa_mc2"]
    shares = []
    for row in TRUE:
        context = task.doc_to_text(row)
        assert context.count("Q: ") == 7 and context.endswith(f"Q: {row['question']}\nA:")
        answers: Any = row["mc2_targets"]
        logs = [score(model, tokenizer, context, f" {c}") for c in answers["choices"]]
        p = torch.tensor(logs, dtype=torch.float64).exp()
        shares.append(float(p[torch.tensor(answers["labels"]) == 1].sum() / p.sum()))
    return sum(shares) / len(shares)


def test_truthfulqa_is_the_probability_of_true_answers(
    wide_llm: Path, tasks: Path, tmp_path: Path
) -> None:
    llm = load_llm(str(wide_llm), dtype=torch.float32).eval()
    wanted = truth(llm, load_tokenizer(wide_llm), tasks)
    found = run(wide_llm, "truthfulqa_mc2", tasks, tmp_path)
    assert found["acc,none"] == pytest.approx(wanted, abs=1e-5)


def test_an_adapter_scores_as_the_merged_model(wide_llm: Path, tasks: Path, tmp_path: Path) -> None:
    from llava_tools.cli.entry import run as command

    write_adapter(wide_llm, tmp_path / "lora")
    words = ["convert", "merge", wide_llm, tmp_path / "lora", tmp_path / "merged"]
    assert command([*map(str, words), "--dtype", "fp32"]) == 0
    task = ("truthfulqa_mc2", tasks)
    base = run(wide_llm, *task, tmp_path / "base")
    adapted = run(wide_llm, *task, tmp_path / "a", adapter=str(tmp_path / "lora"))
    merged = run(tmp_path / "merged", *task, tmp_path / "m")
    assert adapted["acc,none"] == pytest.approx(merged["acc,none"], abs=1e-5)
    assert abs(adapted["acc,none"] - base["acc,none"]) > 1e-4


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_score_as_bitsandbytes_packs(
    wide_llm: Path, tasks: Path, tmp_path: Path, kind: str
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    packing = {"bits": 4, "quant_type": kind}
    packed = load_llm(str(wide_llm), dtype=torch.float32, quantization=packing).eval()
    wanted = truth(packed, load_tokenizer(wide_llm), tasks)
    found = run(*(wide_llm, "truthfulqa_mc2", tasks, tmp_path / kind), bits=4, quant_type=kind)
    assert found["acc,none"] == pytest.approx(wanted, abs=1e-5)
    whole = run(wide_llm, "truthfulqa_mc2", tasks, tmp_path / "whole")
    assert abs(whole["acc,none"] - wanted) > 1e-6


@pytest.mark.parametrize("shots", [0, 2])
def test_winogrande_scores_what_follows_the_blank(
    wide_llm: Path, tasks: Path, tmp_path: Path, shots: int
) -> None:
    llm = load_llm(str(wide_llm), dtype=torch.float32).eval()
    tokenizer = load_tokenizer(wide_llm)

    def filled(row: dict[str, str], number: str) -> tuple[str, str]:
        before, after = row["sentence"].split("_")
        return before + row[f"option{number}"], f" {after.strip()}"

    examples = "".join("".join(filled(r, r["answer"])) + "\n\n" for r in SCHEMAS[2 : 2 + shots])
    right = 0
    for row in SCHEMAS:
        pairs = {number: filled(row, number) for number in "12"}
        logs = {
            number: score(llm, tokenizer, examples + before, after)
            for number, (before, after) in pairs.items()
        }
        right += max(logs, key=lambda number: logs[number]) == row["answer"]
    found = run(wide_llm, "winogrande", tasks, tmp_path, shots)
    assert found["acc,none"] == right / 4


@pytest.mark.parametrize("shots", [0, 2])
def test_hellaswag_strips_its_marks_and_divides_by_characters(
    wide_llm: Path, tasks: Path, tmp_path: Path, shots: int
) -> None:
    llm = load_llm(str(wide_llm), dtype=torch.float32).eval()
    tokenizer = load_tokenizer(wide_llm)

    def clean(text: str) -> str:
        return re.sub(r"\[.*?\]", "", text).replace("  ", " ").strip()

    def asked(row: dict[str, Any]) -> tuple[str, list[str]]:
        context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        return clean(context), [clean(ending) for ending in row["endings"]]

    examples = ""
    for row in SCENES[2 : 2 + shots]:
        context, endings = asked(row)
        examples += f"{context} {endings[int(row['label'])]}\n\n"
    raw = normed = 0
    for row in SCENES:
        context, endings = asked(row)
        logs = [score(llm, tokenizer, examples + context, f" {ending}") for ending in endings]
        per = [value / len(ending) for value, ending in zip(logs, endings, strict=True)]
        raw += logs.index(max(logs)) == int(row["label"])
        normed += per.index(max(per)) == int(row["label"])
    found = run(wide_llm, "hellaswag", tasks, tmp_path, shots)
    assert (found["acc,none"], found["acc_norm,none"]) == (raw / 4, normed / 4)


def test_an_interrupted_run_keeps_what_is_done(
    wide_llm: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "winogrande,truthfulqa_mc2"
    options = Options(device="cpu", dtype="fp32")
    whole = evaluate(wide_llm, names, tmp_path / "whole", include_path=tasks, options=options)
    asked: list[str] = []
    ask = lm._run_task

    def counted(judge: Any, loaded: Any, *rest: Any) -> Any:
        asked.extend(loaded["tasks"])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return ask(judge, loaded, *rest)

    monkeypatch.setattr(lm, "_run_task", counted)
    call = dict(include_path=tasks, options=options)
    with pytest.raises(KeyboardInterrupt):
        evaluate(wide_llm, names, tmp_path / "work", **call)  # type: ignore[arg-type]
    left = [path.name for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert left == ["winogrande.json"]
    again = evaluate(wide_llm, names, tmp_path / "work", **call)  # type: ignore[arg-type]
    assert asked == ["winogrande", "truthfulqa_mc2", "truthfulqa_mc2"]
    assert again["results"] == whole["results"] and again["scores"] == whole["scores"]


def test_an_adapter_of_another_base_is_refused(wide_llm: Path, tasks: Path, tmp_path: Path) -> None:
    write_adapter(wide_llm, tmp_path / "lora")
    factors = read_llm_adapter(tmp_path / "lora").factors
    notes = {"base": {"mark": base_mark(read_llm(wide_llm).tensors, factors)}}
    (tmp_path / "lora/llava_tools.json").write_text(json.dumps(notes))
    call = ("truthfulqa_mc2", tasks, tmp_path / "work")
    run(wide_llm, *call, adapter=str(tmp_path / "lora"))
    other = tiny.save_llm(tmp_path / "other", "vicuna", seed=7)
    with pytest.raises(UserError, match="was trained on other weights than these"):
        run(other, *call, adapter=str(tmp_path / "lora"))
