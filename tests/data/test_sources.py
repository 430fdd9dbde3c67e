"""What a data set of a config says of its rows alone: their first round, what is trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from llava_tools.config import Settings
from llava_tools.config.check import Origin, settings_from
from llava_tools.constants import IGNORE_ID
from llava_tools.data.dataset import build_dataset
from llava_tools.data.prepare import read_sample
from llava_tools.data.rows import RawRow
from llava_tools.data.sample import Sample
from llava_tools.data.sources import make_plan
from llava_tools.errors import UserError
from tests.data.test_mixing import content, talk

Make = Callable[..., Settings]


def test_of_a_dialogue_the_first_round_alone(
    make_settings: Make, tokenizers: dict[str, Any]
) -> None:
    both = [talk("Q", "A", "More?", "B", "And?", system="S"), talk("Q", "A")]
    one = [talk("Q", "A", system="S"), talk("Q", "A")]
    tokenizer = tokenizers["phi3"]
    cut = build_dataset(make_settings(both, first_round=True), tokenizer, None)
    assert content(cut) == content(build_dataset(make_settings(one), tokenizer, None))
    seen = talk("<image>\nQ", "A", "<image>\nMore?", "B", image=["a.png", "b.png"])
    settings = make_settings([seen], first_round=True)
    plan = make_plan(settings, settings.datasets[0], tokenizer, sees_images=True)
    found = read_sample(plan, RawRow(1, json.dumps(seen).encode()))
    assert isinstance(found, Sample) and found.images == ("a.png",) and len(found.turns) == 2


def test_a_data_set_may_say_what_of_it_is_trained_on(
    make_settings: Make, tokenizers: dict[str, Any]
) -> None:
    settings = make_settings([talk("Q", "One", "R", "Two")], train_on="all")
    (spec,) = settings.datasets
    specs = tuple(replace(spec, train_on=on) for on in (None, "last", "full"))
    dataset = build_dataset(replace(settings, datasets=specs), tokenizers["phi3"], None)
    trained = [[i for i in dataset[k].labels.tolist() if i != IGNORE_ID] for k in range(3)]
    said = [tokenizers["phi3"].decode(ids) for ids in trained]
    assert [("One" in text, "Two" in text) for text in said] == [
        (True, True),
        (False, True),
        (True, True),
    ]
    assert len(trained[2]) > len(trained[0]) > len(trained[1])
    with pytest.raises(UserError, match=r"'datasets\[0\].train_on' must be one of 'all', 'last'"):
        settings_from(
            {"llm_name_or_path": "m", "prompt_template": "raw"}
            | {"datasets": [{"data_path": "d", "train_on": "none"}]},
            Origin("c.py"),
        )
