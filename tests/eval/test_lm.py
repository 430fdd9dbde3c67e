"""`eval lm`: lm-eval over our loader, against brute force and lm-eval's own loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_tools.errors import UserError
from llava_tools.eval.lm import Options, evaluate
from llava_tools.eval.lm_tasks import PRESETS
from llava_tools.model.load import load_tokenizer
from tests.model.test_adapted import write_adapter

pytest.importorskip("lm_eval")

ROWS = [
    {"q": "one or two?", "choices": ["one", "two three four"], "label": 1},
    {"q": "cat or dog?", "choices": ["cat cat", "dog"], "label": 0},
    {"q": "red or blue?", "choices": ["a red square", "blue"], "label": 1},
    {"q": "What is in the picture?", "choices": ["circles", "two blue circles"], "label": 1},
]
CHOICES = """
task: tiny_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}, train: {data}}}}}
output_type: multiple_choice
test_split: test
fewshot_split: train
fewshot_config: {{sampler: first_n}}
doc_to_text: "Question: {{{{q}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 1.0}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files for machines without network."""
    root = tmp_path_factory.mktemp("tasks")
    data = root / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (root / "choices.yaml").write_text(CHOICES.format(data=data))
    return root


@pytest.fixture
def run(parts: Path, folder: Path, tmp_path: Path) -> Any:
    """`evaluate` on the tiny model."""

    def call(name: str = "work", **kwargs: Any) -> dict[str, Any]:
        model = kwargs.pop("model", parts / "vicuna")
        tasks = kwargs.pop("tasks", "tiny_choices")
        options = Options(device="cpu", **kwargs.pop("options", {}))
        where = {"include_path": folder, "options": options, **kwargs}
        return evaluate(model, tasks, tmp_path / name, **where)

    return call


def likelihood(model: Any, tokenizer: Any, context: str, ending: str) -> float:
    """Sum of the log-probabilities of the ending's tokens, from one forward of one text."""
    head, whole = (tokenizer(t)["input_ids"] for t in (context, context + ending))
    logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(logits[i - 1, whole[i]]) for i in range(len(head), len(whole)))


@pytest.mark.parametrize("shots", [0, 2])
@torch.no_grad()
def test_accuracies_are_those_of_brute_force(parts: Path, run: Any, shots: int) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(parts / "vicuna", dtype=torch.float32).eval()
    tokenizer = load_tokenizer(parts / "vicuna")
    raw = normed = 0
    for row in ROWS:
        # first_n takes the first K shots, in their order
        context = "".join(
            f"Question: {r['q']}\nAnswer: {r['choices'][r['label']]}\n\n"  # type: ignore[index]
            for r in ROWS[:shots]
        )
        context += f"Question: {row['q']}\nAnswer:"
        scores = [likelihood(model, tokenizer, context, f" {c}") for c in row["choices"]]  # type: ignore[attr-defined]
        lengths = [len(c) for c in row["choices"]]  # type: ignore[attr-defined]
        raw += scores.index(max(scores)) == row["label"]
        per = [s / n for s, n in zip(scores, lengths, strict=True)]
        normed += per.index(max(per)) == row["label"]
    found = run(num_fewshot=shots)["results"]["tiny_choices"]
    assert (found["acc,none"], found["acc_norm,none"]) == (raw / 4, normed / 4)


def test_numbers_are_those_of_lm_eval_alone_at_any_batch_size(
    parts: Path, folder: Path, run: Any
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    judge = simple_evaluate(
        model="hf",
        model_args=f"pretrained={parts / 'vicuna'},dtype=float32",
        tasks=["tiny_choices"],
        device="cpu",
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=1000,
    )
    assert judge is not None
    ours = [run(f"b{size}", options={"batch_size": size})["results"] for size in (1, 4)]
    for found in ours:
        for metric in ("acc,none", "acc_norm,none", "acc_norm_stderr,none"):
            theirs = judge["results"]["tiny_choices"][metric]
            assert found["tiny_choices"][metric] == pytest.approx(theirs)


def test_a_second_call_asks_nothing_and_another_run_is_refused(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llava_tools.eval.lm as lm

    first = run()
    assert first["run"]["compute_dtype"] == "float32" and first["run"]["bits"] is None
    assert first["run"]["lm_eval"] and first["n-shot"]["tiny_choices"] == 0
    with monkeypatch.context() as patch:
        patch.setattr(lm, "_run_task", lambda *_: pytest.fail("asked again"))
        assert run()["results"] == first["results"]
    with pytest.raises(UserError, match="is of another run: limit was None, now 2"):
        run(options={"limit": 2})


def test_another_model_in_the_work_dir_is_refused(parts: Path, run: Any) -> None:
    run()
    with pytest.raises(UserError, match="is of another run: weights was"):
        run(model=parts / "llama3")


def test_four_bits_are_recorded(run: Any, parts: Path, tmp_path: Path) -> None:
    """With the adapter, here the model itself, whose base it names."""
    pytest.importorskip("bitsandbytes")
    write_adapter(parts / "vicuna", tmp_path / "lora")
    packing = {"bits": 4, "quant_type": "fp4", "double_quant": False}
    found = run(model=tmp_path / "lora", options=packing | {"dtype": "bf16"})
    wanted = packing | {"adapter": str(tmp_path / "lora"), "compute_dtype": "bfloat16"}
    assert wanted.items() <= found["run"].items()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": None}, "Give either --tasks or --preset"),
        ({"tasks": " , "}, "--tasks names no task"),
        ({"tasks": None, "preset": "v3"}, "Unknown preset 'v3'"),
        ({"tasks": None, "preset": "open-llm-v1", "num_fewshot": 1}, "has shots of its own"),
        ({"model": "/nowhere/model"}, "/nowhere/model"),
        ({"include_path": Path("/nowhere")}, "holds no task files"),
        ({"options": {"chat_template": True}}, "has no chat template"),
        ({"options": {"adapter": "/nowhere/lora"}}, "/nowhere/lora"),
    ],
)
def test_bad_input(run: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run(**change)
    assert message in str(caught.value)


def test_a_broken_task_file_names_its_line(run: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("task: x\nmetric_list: [\n")
    with pytest.raises(UserError, match=r"bad.yaml', line \d+ is no YAML"):
        run(include_path=tmp_path)


def test_a_missing_data_file_says_what_to_do(run: Any, tmp_path: Path) -> None:
    (tmp_path / "gone.yaml").write_text(CHOICES.format(data=tmp_path / "gone.jsonl"))
    with pytest.raises(UserError, match="'tiny_choices' cannot be loaded(.|\n)*--include-path"):
        run(include_path=tmp_path)


def test_a_foreign_file_in_the_work_dir_is_not_overwritten(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "work" / "tasks" / "tiny_choices.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with pytest.raises(UserError, match="is no result of ours"):
        run()
    assert file.read_text() == "{}"


def test_presets_name_tasks_that_exist() -> None:
    from llava_tools.eval.lm_tasks import check_names, choose, task_manager

    names = [column.task for columns in PRESETS.values() for column in columns]
    manager = task_manager(None, names)
    for columns in PRESETS.values():
        check_names(columns, manager)
    assert [c.shots for c in PRESETS["open-llm-v1"]] == [25, 10, 5, 0, 5, 5]
    with pytest.raises(UserError, match="has no task 'arc_chalenge'") as caught:
        check_names(choose("hellaswag,arc_chalenge", None, None), manager)
    assert caught.value.hint == "Did you mean 'arc_challenge'?"
