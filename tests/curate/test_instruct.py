"""Self-instruct as a whole: what it decides, kills at any moment, bad models, and training."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_tools.backends.request import Failure, Reply, Request
from llava_tools.config import DatasetSpec, Settings
from llava_tools.curate.instruct.kinds import INSTRUCTIONS
from llava_tools.curate.instruct.seeds import read_seeds
from llava_tools.data.dataset import build_dataset
from llava_tools.data.images import ImageProcessor
from llava_tools.errors import UserError
from llava_tools.model.load import load_tokenizer
from tests.curate.instruct_project import (
    Killed,
    Recorder,
    contents,
    project,
    reply_to,
    text_of,
)
from tests.curate.test_instruct_rouge import f_measure
from tests.jsonl import read


def accepted_by_the_rules(
    replies: list[str | Reply], seeds: list[str], *, compat: bool
) -> list[str]:
    """The rules of generation once more, slowly: parse, length, words, novelty."""
    known, made = list(seeds), []
    for reply in replies:
        if isinstance(reply, Reply):  # cut off
            continue
        for item in re.split(r"\n\d+\s?\. ", reply):
            text = re.sub(r"\s+", " ", item).strip()
            text = text.capitalize() if compat else text[:1].upper() + text[1:]
            tokens = re.findall("[a-z0-9]+", text.lower())
            if not 3 < len(text.split()) <= 150:
                continue
            others = [re.findall("[a-z0-9]+", other.lower()) for other in known]
            if max(f_measure(other, tokens) for other in others) <= 0.7:
                known.append(text)
                made.append(text)
    return made


@pytest.mark.parametrize("compat", [False, True])
def test_decisions_of_generation(compat: bool, tmp_path: Path) -> None:
    recorder = Recorder()
    project(tmp_path / "p", recorder, "generate", number=40, compat=compat)
    rows = read(tmp_path / "p" / INSTRUCTIONS)
    seeds = [task.instruction for task in read_seeds().tasks]
    replies = [reply_to(request) for request in recorder.asked]
    made = accepted_by_the_rules(replies, seeds, compat=compat)
    assert [row["instruction"] for row in rows] == made and len(made) >= 40
    assert any("NASA" in text for text in made) is not compat
    rounds = read(tmp_path / "p" / "rounds.jsonl")
    assert sum(r["dropped"].get("similar", 0) for r in rounds) > 5
    assert sum(r["failed"].get("cut_off", 0) for r in rounds) > 0
    last, before = rows[-1], seeds + made[:-1]
    tokens = [re.findall("[a-z0-9]+", text.lower()) for text in before]
    scores = [f_measure(t, re.findall("[a-z0-9]+", made[-1].lower())) for t in tokens]
    assert last["avg_similarity_score"] == pytest.approx(sum(scores) / len(scores))
    assert list(last["most_similar"].values()) == sorted(scores)[-10:][::-1]
    assert all(scores[before.index(text)] == s for text, s in last["most_similar"].items())
    assert last["metadata"]["response"]["choices"][0]["text"] in replies


def test_prompts_mix_seeds_and_what_was_made(tmp_path: Path) -> None:
    recorder = Recorder()
    project(tmp_path / "p", recorder, "generate", number=40)
    seeds = {task.instruction for task in read_seeds().tasks}
    for i, request in enumerate(recorder.asked):
        shown = re.findall(r"\n\d+\. (.*)", text_of(request))
        assert len(shown) == len(set(shown)) == 8 and text_of(request).endswith("\n9.")
        assert len(set(shown) & seeds) == (8 if i < 5 else 6)
        assert (request.max_tokens, request.temperature, request.top_p) == (1024, 0.7, 0.5)
        assert request.presence_penalty == 2 and request.stop == ("\n16", "16.", "16 .")
    assert len({text_of(request) for request in recorder.asked}) == len(recorder.asked)
    only = Recorder()
    project(tmp_path / "q", only, "generate", number=5, label_seeds_only=True, completion=True)
    assert "classification tasks" in text_of(only.asked[0]) and only.asked[0].prompt
    assert only.asked[0].stop[0] == "\n\n"


@pytest.mark.parametrize("variant", ["self-instruct", "alpaca"])
def test_a_kill_anywhere_changes_nothing(variant: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"variant": variant, "min_quality": 9.0}
    whole = Recorder()
    project(tmp_path / "whole", whole, **changes)
    for die_at in range(1, len(whole.asked), 13):
        path = tmp_path / str(die_at)
        first, second = Recorder(die_at=die_at), Recorder()
        with pytest.raises(Killed):
            project(path, first, **changes)
        project(path, second, **changes)
        assert first.asked + second.asked == whole.asked
        assert contents(path) == contents(tmp_path / "whole")


def test_a_killed_process_goes_on(tmp_path: Path) -> None:
    """A real kill, in the midst of writing: what stands is whole, and the rest follows."""
    code = (
        "import os, sys; from pathlib import Path\n"
        "from tests.curate import instruct_project as p\n"
        "from llava_tools.curate.instruct import store\n"
        "def append(self, rows, write=store.Log.append):\n"
        "    if self.path.name == sys.argv[2] and len(self.rows) > 4:\n"
        "        self._file.write(b'{\"half a li'); self._file.flush(); os._exit(9)\n"
        "    write(self, rows)\n"
        "store.Log.append = append\n"
        "p.project(Path(sys.argv[1]))\n"
    )
    project(tmp_path / "whole")
    for name in ("machine_generated_instructions.jsonl", "is_clf_or_not.jsonl"):
        path = tmp_path / name
        command = [sys.executable, "-c", code, str(path), name]
        root = Path(__file__).parents[2]
        ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, check=False)
        assert ended.returncode == 9 and b"half a li" in (path / name).read_bytes()
        project(path)
        assert contents(path) == contents(tmp_path / "whole")


def test_more_can_be_made_later(tmp_path: Path) -> None:
    project(tmp_path / "a", stage="generate", number=10)
    project(tmp_path / "a", stage="generate", number=40)
    project(tmp_path / "b", stage="generate", number=40)
    assert contents_of(tmp_path / "a") == contents_of(tmp_path / "b")
    again = Recorder()
    tally = project(tmp_path / "a", again, "generate", number=40)[0]
    assert not again.asked and tally.asked == 0 and tally.made >= 40


def contents_of(path: Path) -> list[bytes]:
    return [(path / name).read_bytes() for name in (INSTRUCTIONS, "rounds.jsonl")]


def test_unclear_labels_are_asked_again_and_counted(tmp_path: Path) -> None:
    tally = project(tmp_path / "p", stage="all")[1]
    rows = read(tmp_path / "p" / "is_clf_or_not.jsonl")
    unclear = sum(row["is_classification"] == "hm" for row in rows)
    assert tally.failed == {"no_label": unclear} and unclear > 0 and tally.asked == len(rows)
    assert "continue" not in {row["is_classification"] for row in rows}
    project(tmp_path / "q", stage="all", compat=True)
    strict = read(tmp_path / "q" / "is_clf_or_not.jsonl")
    assert "continue" in {row["is_classification"] for row in strict}
    instances = read(tmp_path / "q" / "machine_generated_instances.jsonl")
    assert not any(row["is_classification"] for row in instances)  # "Yes." is no "Yes"


def test_instances_of_one_kind(tmp_path: Path) -> None:
    project(tmp_path / "p", stage="generate")
    project(tmp_path / "p", stage="classify")
    for only, flag in (("classification", True), ("generation", False)):
        before = len(read(tmp_path / "p" / "failed.jsonl"))
        recorder = Recorder()
        project(tmp_path / "p", recorder, "instances", only=only)
        kinds = {"first a label" in text_of(request) for request in recorder.asked}
        assert kinds == {flag} and before <= len(read(tmp_path / "p" / "failed.jsonl"))
        sizes = {request.max_tokens for request in recorder.asked}
        assert sizes == {300 if flag else 350}
    assert recorder.asked[0].stop == ("Example 6", "Task:")


@pytest.mark.parametrize("variant", ["self-instruct", "alpaca"])
def test_what_was_made_trains(variant: str, parts: Path, tmp_path: Path) -> None:
    tallies = project(tmp_path / "p", variant=variant, include_seeds=True, min_quality=9.0)
    rows = json.loads((tmp_path / "p" / "train.json").read_text())
    generated = read(tmp_path / "p" / "all_generated_instances.jsonl")
    assert rows[: len(generated)] == generated and len(rows) == len(generated) + 20
    assert rows[-1]["instruction"] == read_seeds().tasks[-1].instruction
    best = json.loads((tmp_path / "p" / "best.json").read_text())
    grades = read(tmp_path / "p" / "quality.jsonl")
    assert 0 < len(best) < len(rows) and all(row in rows for row in best)
    assert len(best) == sum((row["grade"] or 0) >= 9 for row in grades) == tallies[-1].made
    data = train(parts, DatasetSpec(str(tmp_path / "p" / "train.json"), format="alpaca"))
    assert len(data) == len(rows)


def train(parts: Path, spec: DatasetSpec) -> Any:
    settings = Settings(
        llm_name_or_path=str(parts / "phi3"),
        visual_encoder_name_or_path=str(parts / "clip"),
        prompt_template="phi3_chat",
        datasets=(spec,),
        max_skipped=0.0,
    )
    processor = ImageProcessor.from_folder(parts / "clip")
    return build_dataset(settings, load_tokenizer(parts / "phi3"), processor)


def test_questions_about_images(parts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (2000, 30), (200, 30, 30)).save(folder / "a.png")
    Image.new("RGB", (40, 30), (20, 30, 30)).save(folder / "sub" / "b.JPG", "JPEG")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    changes: dict[str, Any] = {"variant": "image", "image_folder": str(folder), "questions": 4}
    whole = Recorder()
    tallies = project(tmp_path / "p", whole, min_quality=1.0, **changes)
    assert [tally.stage for tally in tallies] == ["generate", "instances", "prepare", "quality"]
    assert tallies[0].failed == {"bad_image": 1} and "broken.png" in tallies[0].first["bad_image"]
    assert tallies[0].dropped == {"similar": 2, "too_short": 2}
    rows = json.loads((tmp_path / "p" / "train.json").read_text())
    assert [row["image"] for row in rows] == ["a.png", "sub/b.JPG"]
    assert rows[0]["conversations"] == [
        {"from": "human", "value": "<image>\nWhat colour is it?"},
        {"from": "gpt", "value": "It is red."},
        {"from": "human", "value": "How many are there?"},
        {"from": "gpt", "value": "It is red."},
    ]
    spec = DatasetSpec(str(tmp_path / "p" / "train.json"), str(folder), format="llava")
    assert len(train(parts, spec)) == 2
    first, second = Recorder(die_at=3), Recorder()
    with pytest.raises(Killed):
        project(tmp_path / "q", first, min_quality=1.0, **changes)
    project(tmp_path / "q", second, min_quality=1.0, **changes)
    assert first.asked + second.asked == whole.asked
    for name in ("train.json", "best.json", "image_answers.jsonl"):
        assert (tmp_path / "q" / name).read_bytes() == (tmp_path / "p" / name).read_bytes()


def test_a_model_that_says_nothing_new_ends_the_run(tmp_path: Path) -> None:
    said: dict[str, str | Reply | Failure] = {
        "similar": "Describe the garden of NASA slowly",
        "nothing_parsed": "",
        "cut_off": Reply("Describe the garden of NASA slowly", "length"),
        "refused": Failure("refused", "400 too long"),
    }
    for reason, reply in said.items():
        with pytest.raises(UserError, match=rf"3 rounds .* no new instruction.* x {reason}") as e:
            project(tmp_path / reason, lambda request: reply, "generate", patience=3)  # noqa: B023
        assert "What was made is kept" in e.value.hint


def test_an_outage_leaves_no_trace(tmp_path: Path) -> None:
    """It begins in the midst of a round; the round is the same when the server is back."""
    whole = Recorder()
    project(tmp_path / "whole", whole, "generate")
    for last in (3, 7, 12):
        count = iter(range(10**6))
        away = Recorder(lambda request: reply_to(request) if next(count) < last else OUTAGE)  # noqa: B023
        with pytest.raises(UserError, match=r"of 5 requests of a round failed 3 times.*\n.*kept"):
            project(tmp_path / str(last), away, "generate")
        back = Recorder()
        project(tmp_path / str(last), back, "generate")
        assert away.asked[:last] + back.asked == whole.asked
        assert contents_of(tmp_path / str(last)) == contents_of(tmp_path / "whole")


OUTAGE = Failure("timeout", "5 s an attempt")


def test_failures_above_the_threshold(tmp_path: Path) -> None:
    project(tmp_path / "p", stage="generate")
    outage = Recorder(lambda request: Failure("timeout", "5 s") if random_half(request) else "No")
    with pytest.raises(UserError, match=r"of the stage 'classify'.*--max-failed 0.1.*x timeout"):
        project(tmp_path / "p", outage, "classify", max_failed=0.1)
    again = Recorder(lambda request: "No")
    tally = project(tmp_path / "p", again, "classify", max_failed=0.1)[0]
    failed = [request for request in outage.asked if random_half(request)]
    assert again.asked == failed and tally.made == len(outage.asked)
    told = [row for row in read(tmp_path / "p" / "failed.jsonl") if row["stage"] == "classify"]
    assert len(told) == len(failed) and told[0]["detail"] == "5 s"


def random_half(request: Request) -> bool:
    return random.Random(text_of(request)).random() < 0.5
