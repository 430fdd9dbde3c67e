"""The same conversation from every format: the same prompts and the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava_tools.chat.session import Session
from llava_tools.chat.start import open_pictures, open_session
from llava_tools.converters.convert import convert
from llava_tools.model.generate import GenerationSettings
from tests.chat.conftest import FAMILIES
from tests.model.checkpoints import make_run
from tests.model.test_adapted import write_adapter

FOUR_BITS = {"bits": 4, "quant_type": "nf4", "double_quant": True}


def conversation(session: Session, images: list[Path]) -> list[tuple[list[int], list[int], str]]:
    """Talk about the images in two turns, then without an image; return ids and answers."""
    said = []
    for shown, questions in (
        (images, ("What is in the picture?", "And the other?")),
        ([], ("A?",)),
    ):
        session.show(open_pictures([str(path) for path in shown]))
        for question in questions:
            answer = "".join(session.ask(question))
            assert session.last is not None
            said.append((session.last.prompt_ids, session.last.token_ids, answer))
    return said


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_equal_in_every_format(
    models: dict[str, Path], parts: Path, tmp_path: Path, family: str
) -> None:
    template = "vicuna" if family == "vicuna" else None
    images = [parts / "images" / f"{i}.png" for i in (0, 1)]
    settings = GenerationSettings(max_new_tokens=12)
    source = models[family]
    expected = conversation(open_session(str(source), template=template, settings=settings), images)
    assert len({answer for _, _, answer in expected}) == 3
    for to in ("xtuner", "llava", "hf"):
        convert(str(source), tmp_path / to, to=to, dtype="fp32")
        session = open_session(str(tmp_path / to), template=template, settings=settings)
        assert session.assistant.format == to
        assert conversation(session, images) == expected, to


def test_a_run_answers_as_everything_made_of_it(parts: Path, tmp_path: Path) -> None:
    """A checkpoint with its config beside it or named, an adapter over it, each in any format."""
    images = [parts / "images" / f"{i}.png" for i in (0, 1)]
    settings = GenerationSettings(max_new_tokens=12)

    def said(path: Path, **options: Any) -> list[tuple[list[int], list[int], str]]:
        return conversation(open_session(str(path), settings=settings, **options), images)

    run = make_run(tmp_path / "run", parts, "llama3")
    expected = said(run)
    assert len({answer for _, _, answer in expected}) == 3
    config = (run.parent / "config.py").rename(tmp_path / "moved.py")
    assert said(run, config=str(config)) == expected
    folders = [tmp_path / to for to in ("xtuner", "llava", "hf")]
    for folder in folders:
        convert(str(run), folder, to=folder.name, dtype="fp32", config=str(config))
        assert said(folder) == expected, folder.name
    write_adapter(parts / "llama3", tmp_path / "lora", bias="none")
    adapted = [said(folder, adapter=str(tmp_path / "lora")) for folder in folders]
    assert adapted[0] == adapted[1] == adapted[2] != expected
    packed = [said(folder, quantization=FOUR_BITS) for folder in folders]
    assert packed[0] == packed[1] == packed[2] != expected
