"""A model on this machine as a backend."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from llava_tools.backends.local import Local
from llava_tools.backends.messages import image_part
from llava_tools.backends.request import Failure, Reply, Request, chat
from llava_tools.backends.scripted import Scripted
from llava_tools.chat.session import Session
from llava_tools.errors import UserError
from llava_tools.model.generate import GenerationSettings
from llava_tools.model.load import Assistant, load_assistant
from tests import tiny


@pytest.fixture(scope="module")
def assistant(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    return load_assistant(tiny.save_xtuner(tmp_path_factory.mktemp("m") / "m", parts, "phi3"))


def requests() -> list[Request]:
    picture = image_part(Image.new("RGB", (40, 30), (200, 30, 30)))
    look = {"role": "user", "content": [picture, {"type": "text", "text": "What is this?"}]}
    return [
        chat("What color?", max_tokens=6),
        Request(messages=(look,), max_tokens=6),
        chat("a much longer question than the others are, so that rows are padded", max_tokens=6),
        chat("Sing.", "You sing.", max_tokens=3),
    ]


def test_answers_are_those_of_a_conversation_at_any_batch_size(assistant: Assistant) -> None:
    one, many = (dict(Local(assistant, batch_size=size).answers(requests())) for size in (1, 3))
    assert one == many and sorted(one) == [0, 1, 2, 3]
    session = Session(assistant, GenerationSettings(max_new_tokens=6))
    said = "".join(session.ask("What color?")).strip()
    found = one[0]
    assert isinstance(found, Reply) and found.text == said
    assert session.last and found.prompt_tokens == len(session.last.prompt_ids)


def test_what_is_too_long_fails_alone(assistant: Assistant) -> None:
    asking = Local(assistant)
    found = dict(asking.answers([chat("word " * 3000), chat("hi", max_tokens=2)]))
    assert isinstance(found[0], Failure) and "exceed" in found[0].detail
    assert isinstance(found[1], Reply) and asking.meter.failures == {"refused": 1}


def test_what_only_servers_can_do(assistant: Assistant) -> None:
    with pytest.raises(UserError, match="no log-probabilities"):
        list(Local(assistant).answers([chat("x", top_logprobs=5)]))


def test_samples_follow_the_seed(assistant: Assistant) -> None:
    ask = [Request(prompt="one two", max_tokens=8, temperature=1.5)] * 2
    first, again, other = (list(Local(assistant, seed=s).answers(ask)) for s in (0, 0, 1))
    assert first == again and first != other


def test_a_script_answers_in_order() -> None:
    script = Scripted(lambda request: Failure("timeout") if request.tag else "yes")
    found = dict(script.answers([chat("a"), chat("b", tag="x")]))
    assert found == {0: Reply("yes"), 1: Failure("timeout")}
    failed = "1 failed (1 x timeout; the first: no answer within the time allowed)"
    assert script.meter.line() == f"1 replies, {failed}, 0 + 0 tokens (in + out)"
