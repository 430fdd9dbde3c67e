"""What each kit's rules make of the same answers, item by item."""

from __future__ import annotations

import pytest

from llava_tools.eval import choices, yes_no

OPTIONS = {"A": "a cat", "B": "a dog", "C": "two birds", "D": "nothing"}
RULES = {
    "vk24": choices.choose_vlmevalkit,
    "vk26": choices.choose_vlmevalkit_2026,
    "lmms": choices.choose_lmms_mmbench,
    "mmmu": choices.choose_mmmu,
    "sqa": choices.choose_llava_scienceqa,
    "lmms_sqa": choices.choose_lmms_scienceqa,
    "seed": choices.choose_lmms_seed,
    "whole": choices.choose_whole,
    "ai2d": choices.choose_lmms_ai2d,
    "mmstar": choices.choose_mmstar,
    "xtuner": choices.choose_xtuner,
    "lmms26": choices.choose_lmms_2026,
    "lmms_mmmu": choices.choose_lmms_mmmu,
}
LONG = "B because the ears of the animal are those of a hound and its tail is short"
# Answers, and what the rules choose in the order of RULES ("-": undecided).
TABLE = {
    "B": "BBBBBBBBBBBBB",
    "b": "-----BB-BB---",
    "(B)": "BBBB----BBBBB",
    "B.": "BBBB-BB-BBBBB",
    "B. a dog": "BBB-BBB-BBBBB",
    "The answer is B": "BBBB-----BBBB",
    "The answer is B.": "BBBBB----BBBB",
    "Answer: B": "BBBB--A--AABB",
    "a dog": "BBB---A--A---",
    "a cat and a dog": "------A--A---",
    "Option B": "BBBB-----BBBB",
    "B:yes": "BB----B--BBB-",
    "B\n": "BBB--BB-BBBB-",
    "A dog that is B": "BBBB--A--AAAB",
    LONG: "B-BB--B--BBBB",
    "": "-------------",
    "E": "--E-E--------",
    "Z": "ZZ-----------",
    "DNA": "------D--DDAA",
    # lmms-eval of 2026 ranks the forms of a letter; the last one in the surest form counts.
    "The answer is B, not A.": "-BAAB----BBAA",
    "The option (C) is fine, B. is not": "--BC------CCC",
    "I pick D": "DDDD------DDD",
    "答案是B": "----------BBB",
    "DNA shows C": "CCCC--D--DDCC",
    # VLMEvalKit of 2026: a letter among the last four words; "answer is" in any case, d for dog.
    "B is what I say": "B-BB--B--BBBB",
    "I say B is what": "BBBB------BBB",
    "the answer is dog meat": "-D-------D---",
    "The answer IS **b** or so": "-B-----------",
    "Failed to obtain answer via API. answer is B": "---B------ABB",
}


@pytest.mark.parametrize("text", TABLE)
def test_choices(text: str) -> None:
    found = {name: rule(text, OPTIONS) or "-" for name, rule in RULES.items()}
    assert list(found.values()) == list(TABLE[text])


DECISIONS = {
    "vk": yes_no.decide_vlmevalkit,
    "pope": yes_no.decide_pope,
    "mme": yes_no.decide_mme,
    "lmms_mme": yes_no.decide_lmms_mme,
    "lmms_pope": yes_no.decide_exact,
    "hallusion": yes_no.decide_digit,
}
YES_NO = {
    "Yes": "yyyyyy",
    "Yes.": "yyyy-y",
    "NO": "nynnnn",
    "No, there is none": "nnnn-n",
    "There is no dog": "nn---n",
    "Not really": "-ynn-n",
    "Yes and no": "-nyy-y",
    "it is not": "-n---n",
    "y": "-y-y-n",
    "N.": "-y-n-n",
    "": "-y---n",
    "eyes": "-yyy-y",
}


@pytest.mark.parametrize("text", YES_NO)
def test_decisions(text: str) -> None:
    found = "".join((decide(text) or "-")[0] for decide in DECISIONS.values())
    assert found == YES_NO[text]
