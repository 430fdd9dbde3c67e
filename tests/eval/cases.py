"""Made-up tables of every benchmark, with what they ask and what answers to them earn."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.eval import tables
from tests.eval.tables import picture

LETTER = "\nAnswer with the option's letter from the given choices directly."
SHORT = "\nAnswer the question using a single word or phrase."
MC = f"<image>\nLook.\nWhich?\nA. cat\nB. dog{LETTER}"
LMMS_MC = f"<image>\nLook. Which? There are several options:\nA. cat\nB. dog\n{LETTER}"
MMMU_MC = f"<image>\nWhich?\nA. cat\nB. dog\n{LETTER}"
DESCRIBES = "Please provide the bounding box coordinate of the region this sentence describes:"
ABILITIES = {"category": "fine", "l2-category": "count"}


@dataclass
class Case:
    """Rows with answers to them, the first row's prompts and some scores, all by protocol."""

    rows: list[dict[str, Any]]
    prompts: dict[str, str]
    said: list[str]
    scores: dict[str, dict[str, float]]
    groups: dict[str, dict[str, float]] = field(default_factory=dict)  # of the default protocol


def two(**cells: Any) -> dict[str, Any]:
    return {"question": "Which?", "A": "cat", "B": "dog", "answer": "B", **cells}


def letters(*said: str, **scores: Any) -> tuple[list[str], dict[str, Any]]:
    return list(said), {name: {"accuracy": value} for name, value in scores.items()}


PLAIN = [two(hint="Look.", category="x"), two(category="x"), two(category="y"), two(category="y")]
SPOKEN = ["B", "B.", "the dog", "Not A but B"]
NONE: dict[str, Any] = {"hint": ""}
YES_NO = [
    {"question": "Is there a dog?", "answer": "Yes", "category": "random,popular"},
    {"question": "Is there a cat?", "answer": "no", "category": "random"},
    {"question": "Is there a cow?", "answer": "Yes", "category": "popular"},
    {"question": "Is there a fox?", "answer": "No", "category": "popular"},
]
MME_END = "Please answer yes or no."
MME_ROWS = [
    {"question": f"Is it {what}? {MME_END}", "answer": answer, "category": task,
     "image_path": f"{task}/{image}.jpg"}
    for task, image in (("count", 1), ("count", 2), ("OCR", 1), ("code_reasoning", 1))
    for what, answer in (("red", "Yes"), ("blue", "No"))
]  # fmt: skip
HALLUSION_ROWS = [
    {"index": f"VD_figure_1_0_{figure}_{asked}", "question": f"Q{asked}?", "answer": answer,
     "category": "VD", "l2-category": "VD_figure"}
    for figure, asked, answer in ((1, 0, "Yes"), (1, 1, "No"), (2, 0, "No"), (2, 1, "Yes"))
]  # fmt: skip
TEN = ["stop"] * 3 + ["stop sign"] * 5 + ["go", "a stop"]

CASES = {
    "ccbench": Case(
        tables.copies(1, ["cat", "dog"], 1, hint="Look.", question="Which?", category="relic")
        + tables.copies(2, ["cat", "dog"], 1, category="food"),
        {"vlmevalkit": MC, "vlmevalkit-2026": MC, "xtuner": MC, "lmms-eval": LMMS_MC,
         "lmms-eval-2026": LMMS_MC},
        ["B", "B", "It is B", "(A) cat"],
        {
            "vlmevalkit": {"circular": 0.5, "vanilla": 1},
            "vlmevalkit-2026": {"circular": 0.5, "vanilla": 1},
            "xtuner": {"circular": 0.5, "vanilla": 1},
            "lmms-eval": {"circular": 0.5, "vanilla": 1},
            "lmms-eval-2026": {"circular": 0.5, "vanilla": 1},
        },
    ),
    "seed": Case(
        PLAIN,
        dict.fromkeys(("lmms-eval", "vlmevalkit", "vlmevalkit-2026", "llava"), MC),
        *letters(*SPOKEN, **{"lmms-eval": 0.5, "vlmevalkit": 0.75, "llava": 0.25}),
        {"x": {"accuracy": 1}, "y": {"accuracy": 0}},
    ),
    "ai2d": Case(
        PLAIN,
        dict.fromkeys(("lmms-eval", "vlmevalkit", "vlmevalkit-2026"), MC),
        *letters(*SPOKEN, **{"lmms-eval": 0.5, "vlmevalkit": 0.75, "vlmevalkit-2026": 0.75}),
    ),
    "scienceqa": Case(
        PLAIN,
        {
            "lmms-eval": f"<image>\nContext: Look.\nWhich?\nA. cat\nB. dog{LETTER}",
            "llava": f"<image>\nContext: Look.\nQuestion: Which?\nOptions: (A) cat (B) dog{LETTER}",
            "vlmevalkit": MC,
            "vlmevalkit-2026": MC,
        },
        *letters("B", "B.", "The answer is B.", "b", **{"lmms-eval": 0.75, "llava": 0.5}),
    ),
    "mmstar": Case(
        [
            {"question": "Which? Options: A: cat, B: dog", "answer": "B", **ABILITIES},
            {"question": "Which? Options: A: a, b, B: c", "answer": "A", **ABILITIES},
            {**two(), "category": "coarse", "l2-category": "style"},
        ],
        {**dict.fromkeys(("vlmevalkit", "vlmevalkit-2026", "official"),
                         f"<image>\nWhich?\nA. cat\nB. dog{LETTER}"),
         **dict.fromkeys(("lmms-eval", "lmms-eval-2026"),
                         f"<image>\nWhich? Options: A: cat, B: dog{LETTER.removesuffix('.')}")},
        *letters("B", "option B", "(b)",
                 **{"vlmevalkit": 1 / 3, "official": 2 / 3, "lmms-eval": 0.75,
                    "lmms-eval-2026": 0.25}),
        {"coarse": {"accuracy": 0}, "fine": {"accuracy": 0.5}},
    ),
    "mmmu": Case(
        [two(category="Art", split="validation"), two(category="Art", split="dev"),
         {"question": "How much?", "answer": "['1,000', 'a lot']", "category": "Math",
          "split": "validation"}],
        {"official": MMMU_MC, "lmms-eval": MMMU_MC, "lmms-eval-interleaved": MMMU_MC,
         "vlmevalkit-interleaved": f"<image>\nWhich?\nA. cat\nB. dog{LETTER}",
         "vlmevalkit": f"<image>\nWhich?\nA. cat\nB. dog{LETTER}",
         "vlmevalkit-2026": f"<image>\nWhich?\nA. cat\nB. dog{LETTER}"},
        *letters("(B)", "It is A", "So the answer is 1000",
                 **{"official": 2 / 3, "lmms-eval": 2 / 3, "vlmevalkit": 1 / 3}),
        {"Art": {"accuracy": 0.5}, "Math": {"accuracy": 1}},
    ),
    "gqa": Case(
        [{"question": "What?", "answer": answer} for answer in ("yes", "t-shirt", "dog", "cat")],
        dict.fromkeys(("llava", "lmms-eval", "vlmevalkit"), f"<image>\nWhat?{SHORT}"),
        *letters("Yes.", "tshirt", " Dog ", "a cat",
                 **{"llava": 0.25, "lmms-eval": 0.5, "vlmevalkit": 0.25}),
    ),
    "textvqa": Case(
        [{"question": "what does the Sign say?", "answer": repr(TEN), "ocr": "STOP, GO"},
         {"question": "and here?", "answer": repr(TEN)}],
        {"llava": f"<image>\nwhat does the Sign say?\nReference OCR token: STOP, GO{SHORT}",
         "lmms-eval": f"<image>\nWhat does the sign say?{SHORT}",
         "vlmevalkit": f"<image>\nwhat does the Sign say?{SHORT}",
         "vlmevalkit-2026": f"<image>\nwhat does the Sign say?{SHORT}"},
        *letters("Go!", "Stop.", **{"llava": (0.3 + 1) / 2, "vlmevalkit": (0.3 + 1) / 2}),
    ),
    "pope": Case(
        YES_NO,
        {"llava": f"<image>\nIs there a dog?{SHORT}", "vlmevalkit": "<image>\nIs there a dog?",
         "lmms-eval": f"<image>\nIs there a dog?{SHORT}"},
        ["yes", "Yes", "There is none", "no"],
        # Pairs of question and category: random (right, wrong), popular (right, wrong, right).
        {"llava": {"accuracy": 4 / 5, "pope": (2 / 3 + 1) / 2, "f1": 6 / 7, "yes_ratio": 0.8},
         "vlmevalkit": {"accuracy": 3 / 5, "pope": 2 / 3, "f1": 2 / 3, "yes_ratio": 0.6},
         "lmms-eval": {"accuracy": 3 / 5, "pope": 4 / 5}},
        {"popular": {"f1": 1, "accuracy": 1}, "random": {"f1": 2 / 3, "accuracy": 0.5}},
    ),
    "mme": Case(
        MME_ROWS,
        {"llava": f"<image>\nIs it red?{SHORT}", "lmms-eval": f"<image>\nIs it red?{SHORT}",
         "official": f"<image>\nIs it red? {MME_END}",
         "vlmevalkit": f"<image>\nIs it red? {MME_END}"},
        ["Yes", "No", "Yes", "Yes", "Y", "N.", "Answer: yes", "no"],
        {"llava": {"perception": 75 + 50, "cognition": 50, "score": 175},
         "lmms-eval": {"perception": 75 + 50 + 200, "cognition": 50},
         "official": {"perception": 125}, "vlmevalkit": {"perception": 125, "cognition": 200}},
        {"count": {"acc": 75, "acc+": 50, "score": 125}, "OCR": {"score": 0}},
    ),
    # An image of 200 x 100, so that hundredths, fractions, pixels and the square all differ.
    "refcoco": Case(
        [{"question": "left dog", "answer": "[20, 10, 120, 60]", "width": 200, "height": 100,
          "category": category} for category in ("RefCOCO val",) * 3 + ("RefCOCO+ testA",)],
        {"xtuner": "<image>\n[refer] give me the location of left dog",
         "lmms-eval": "<image>\nBounding box coordinates are specified in the format (top-left x, "
                      "top-left y, bottom-right x, bottom-right y). All values are floating point "
                      f"numbers bounded between 0 and 1. {DESCRIBES} left dog",
         "vlmevalkit-2026": f"<image>\n{DESCRIBES} left dog.",
         "llava": f"<image>\n{DESCRIBES} left dog."},
        ["{<10><10><60><60>}", "[0.1, 0.1, 0.6, 0.61]", "[100, 100, 600, 600]",
         "[0.1, 0.3, 0.6, 0.54]"],
        {"xtuner": {"accuracy": 1 / 4, "average": 1 / 6},
         "lmms-eval": {"accuracy": 1 / 4, "average": 1 / 6, "iou": (50 / 51 + 0.48) / 4},
         "vlmevalkit-2026": {"accuracy": 2 / 4, "average": 1 / 3},
         "llava": {"accuracy": 1 / 4, "average": 1 / 2}},
        {"RefCOCO val": {"accuracy": 1 / 3}, "RefCOCO+ testA": {"accuracy": 0}},
    ),
    "hallusion": Case(
        HALLUSION_ROWS,
        {"vlmevalkit": "<image>\nQ0?", "official": "<image>\nQ0?"},
        ["Yes.", "Surely not", "no", "yes"],
        {"vlmevalkit": {"aAcc": 0.75, "fAcc": 0.5, "qAcc": 0.5},
         "official": {"aAcc": 1, "fAcc": 1, "qAcc": 1}},
        {"VD": {"aAcc": 0.75, "fAcc": 0.5}},
    ),
}  # fmt: skip
CASES["mmbench"] = CASES["ccbench"]


def write_case(folder: Path, name: str, **change: Any) -> Path:
    """Write the table of a case; columns are those that occur. `change` alters every row."""
    rows = [
        {"index": i, "image": picture(list(tables.COLORS)[i % 3]), **row, **change}
        for i, row in enumerate(CASES[name].rows)
    ]
    return tables.write(
        folder / f"{name}.tsv", rows, list(dict.fromkeys(k for r in rows for k in r))
    )
