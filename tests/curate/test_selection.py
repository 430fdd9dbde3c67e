"""Selection by Cherry_LLM's rules, and right where its scripts go wrong."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch

from llava_tools.curate.output import write_rows
from llava_tools.curate.rows import row_key
from llava_tools.curate.score_log import KIND
from llava_tools.curate.scores import read_scores
from llava_tools.curate.selection import Rules, select
from llava_tools.errors import UserError

Rows = list[dict[str, Any]]


def data_file(folder: Path, rows: Rows, name: str = "rows.json") -> Path:
    path = folder / name
    text = (
        json.dumps(rows) if name.endswith(".json") else "".join(f"{json.dumps(r)}\n" for r in rows)
    )
    path.write_text(text)
    return path


def score_file(
    folder: Path, rows: Rows, scores: list[Any], name: str = "s.jsonl", **identity: Any
) -> Path:
    """Write scores: a number is an IFD, a text a reason, a dict a record, None no line."""
    lines: list[Any] = [
        {"kind": KIND, "fingerprint": {"mode": "cherry"} | identity, "info": {"ifd": "loss"}}
    ]
    for i, score in enumerate(scores):
        if score is None:
            continue
        record = {"row": i, "id": row_key(rows[i])}
        if isinstance(score, str):
            record["reason"] = score
        else:
            values = score if isinstance(score, dict) else {"ifd_loss": score, "tokens": 5}
            record |= values
        lines.append(record)
    path = folder / name
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return path


def make(count: int) -> Rows:
    return [{"instruction": f"say {i}", "input": "", "output": f"answer {i}"} for i in range(count)]


def chosen(folder: Path, scores: list[Any], **rules: Any) -> list[int]:
    rows = make(len(scores))
    data = data_file(folder, rows)
    return select(data, read_scores([score_file(folder, rows, scores)]), Rules(**rules)).chosen


def cherry(scores: list[float], rate: float = 0, number: int = 0) -> list[int]:
    """Choose as the specification of data_by_IFD says, NaN and empty selections put right."""
    kept = [(score, i) for i, score in enumerate(scores) if score <= 1]
    kept.sort()
    count = number or int(len(kept) * rate)
    return sorted(i for _, i in kept[len(kept) - min(count, len(kept)) :])


@pytest.mark.parametrize("seed", range(20))
def test_choices_are_those_of_the_specification(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    scores = [rng.choice([0.2, 0.5, 0.5, 1.0, 1.0 + 1e-12, 1.3, rng.random()]) for _ in range(40)]
    rate = rng.choice([0.06, 0.1, 0.5, 1.0])
    assert chosen(tmp_path, scores, top=rate) == cherry(scores, rate)
    assert chosen(tmp_path, scores, number=7) == cherry(scores, number=7)


def test_ties_go_to_the_later_row_and_the_order_stays(tmp_path: Path) -> None:
    assert chosen(tmp_path, [0.5, 0.9, 0.5, 0.5, 0.1], number=3) == [1, 2, 3]
    assert chosen(tmp_path, [0.5, 0.9, 0.5, 0.5, 0.1], number=2, ascending=True) == [0, 4]


def test_chance_is_seeded_and_keeps_the_filters(tmp_path: Path) -> None:
    scores = [{"ifd_loss": 0.5 if i % 2 else 2.0, "ppl": 3.0} for i in range(60)]
    one, same, other = (chosen(tmp_path, scores, number=10, by="random", seed=s) for s in (0, 0, 1))
    assert one == same != other and len(one) == 10 and all(i % 2 for i in one + other)


def test_exactly_one_stays_and_more_goes(tmp_path: Path) -> None:
    assert chosen(tmp_path, [1.0, math.nextafter(1, 2), 0.5], number=3) == [0, 2]
    assert chosen(tmp_path, [1.0, 1.5, 0.5], number=3, max_ifd=math.inf) == [0, 1, 2]


def test_a_share_is_of_the_kept_rows_or_of_all(tmp_path: Path) -> None:
    scores = [0.5, 0.6, 0.7, 0.8, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert chosen(tmp_path, scores, top=0.5) == [2, 3]
    assert chosen(tmp_path, scores, top=0.3, of="all") == [1, 2, 3]


# The bugs of the scripts, by their number in the specification (1.12).


def test_bug_3_a_score_that_is_no_number_is_dropped_and_counted(tmp_path: Path) -> None:
    rows = make(4)
    data = data_file(tmp_path, rows)
    records = [0.4, {"ifd_loss": None, "tokens": 5}, 0.9, 0.8]
    found = select(data, read_scores([score_file(tmp_path, rows, records)]), Rules(number=2))
    assert found.chosen == [2, 3]
    assert found.reasons == {"not_finite": 1, "not_chosen": 1} and found.faulty == 1


def test_of_rows_without_any_score_none_is_chosen_and_all_are_counted(tmp_path: Path) -> None:
    rows = make(3)
    reasons = ["no_output", "no_output", "empty_answer"]
    scores = read_scores([score_file(tmp_path, rows, reasons)])
    found = select(data_file(tmp_path, rows), scores, Rules(top=0.5))
    assert found.chosen == [] and found.reasons == {"no_output": 2, "empty_answer": 1}
    assert found.faulty == found.rows == 3
    scores = read_scores([score_file(tmp_path, [], [])])
    assert select(data_file(tmp_path, []), scores, Rules(top=0.5)).chosen == []


@pytest.mark.parametrize("rules", [{"top": 0.01}, {"number": 0}, {"top": 0.0}])
def test_bug_4_nothing_chosen_is_no_rows(rules: dict[str, Any], tmp_path: Path) -> None:
    assert chosen(tmp_path, [0.5] * 10, **rules) == []
    assert chosen(tmp_path, [1.5] * 10, top=1.0) == []
    write_rows(data_file(tmp_path, make(10)), [], tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == []


def test_bug_5_scores_of_other_rows_are_refused(tmp_path: Path) -> None:
    rows = make(6)
    scores = read_scores([score_file(tmp_path, rows, [0.5] * 6)])
    with pytest.raises(UserError, match=r"rows.json, row 1 is not the row that was scored as row"):
        select(data_file(tmp_path, rows[1:]), scores, Rules(number=1))
    with pytest.raises(UserError, match=r"scores go up to row 6, but .* has 4 rows"):
        select(data_file(tmp_path, rows[:4]), scores, Rules(number=1))


def save_pt(path: Path, pairs: list[tuple[float, float]]) -> Path:
    """Write (direct, conditioned) perplexities as data_analysis saves them."""
    torch.save(
        [
            {"ppl": [0, d, c], "token_loss": [[], [math.log(d or 1)], [math.log(c or 1)]]}
            for d, c in pairs
        ],
        path,
    )
    return path


def test_bug_5_a_pt_file_of_a_part_needs_its_start(tmp_path: Path) -> None:
    pt = save_pt(tmp_path / "a.pt", [(9.0, 3.0), (9.0, 4.0), (9.0, 8.0)])
    data = data_file(tmp_path, make(5))
    with pytest.raises(UserError, match=r"has 5 rows, but the .pt file scores 3"):
        select(data, read_scores([pt]), Rules(number=1))
    found = select(data, read_scores([pt], start=2), Rules(number=1))
    assert found.chosen == [4] and found.reasons["not_scored"] == 2
    with pytest.raises(UserError, match="go up to row 7"):
        select(data, read_scores([pt], start=4), Rules(number=1))
    with pytest.raises(UserError, match="--start-idx is for the .pt files"):
        read_scores([score_file(tmp_path, make(5), [0.5] * 5)], start=1)


def test_pt_files_of_cherry_give_their_ifd(tmp_path: Path) -> None:
    pairs = [(9.0, 3.0), (0.0, 0.0), (5.0, 6.0), (7.0, 2.0)]
    scores = read_scores([save_pt(tmp_path / "a.pt", pairs)])
    found = select(data_file(tmp_path, make(4)), scores, Rules(number=4))
    assert found.chosen == [0, 3]
    assert found.reasons == {"not_finite": 1, "above_max_ifd": 1}
    assert found.values[0] == pytest.approx(math.log(3) / math.log(9))
    assert scores.column("ifd_ppl", 4)[3] == pytest.approx(2 / 7)


def test_embeddings_of_a_pt_file(tmp_path: Path) -> None:
    rows = [
        {"ppl": [torch.tensor(float(i)), 0, 0], "sent_emb": [torch.full((1, 3), i), 0, 0]}
        for i in range(2)
    ]
    torch.save(rows, tmp_path / "pre.pt")
    scores = read_scores([tmp_path / "pre.pt"])
    assert scores.mode == "pre" and list(scores.column("ppl", 2)) == [0, 1]
    assert scores.embedding(1).tolist() == [1, 1, 1]


class Evil:
    def __reduce__(self) -> tuple[Any, Any]:
        return (Path.touch, (Path("/tmp/llava_tools_evil"),))


def test_a_hostile_pt_file_does_nothing(tmp_path: Path) -> None:
    torch.save([{"ppl": [Evil(), 1, 1]}], tmp_path / "evil.pt")
    read_scores([tmp_path / "evil.pt"])
    assert not Path("/tmp/llava_tools_evil").exists()
    torch.save({"a": 1}, tmp_path / "other.pt")
    for name in ("other.pt",):
        with pytest.raises(UserError, match="no list of scores as Cherry_LLM saves it"):
            read_scores([tmp_path / name])
    torch.save([{"ppl": 3}], tmp_path / "row.pt")
    with pytest.raises(UserError, match="no list of scores"):
        read_scores([tmp_path / "row.pt"])
    with pytest.raises(UserError, match="Several score files, one of which is a .pt"):
        read_scores([tmp_path / "row.pt", tmp_path / "other.pt"])


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    rows = make(6)
    data = data_file(tmp_path, rows)
    for part in (1, 2):
        kept = [0.1 * i if i % 2 == part - 1 else None for i in range(6)]
        score_file(tmp_path, rows, kept, f"s-{part}-of-2.jsonl", shard=f"{part}/2")
    assert select(data, read_scores([tmp_path / "s.jsonl"]), Rules(number=2)).chosen == [4, 5]
    one = tmp_path / "s-1-of-2.jsonl"
    found = select(data, read_scores([one]), Rules(number=9))
    assert found.reasons["not_scored"] == 3 == found.faulty
    with pytest.raises(UserError, match="scores row 1 again"):
        read_scores([one, one])
    other = score_file(tmp_path, rows, [0.5], "other.jsonl", weights="b")
    with pytest.raises(UserError, match="different runs: weights is None and 'b'"):
        read_scores([one, other])


def test_scores_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing.jsonl' cannot be read"):
        read_scores([tmp_path / "missing.jsonl"])
    (tmp_path / "x.jsonl").write_text('{"instruction": "a"}\n')
    with pytest.raises(UserError, match="no score file of"):
        read_scores([tmp_path / "x.jsonl"])
    (tmp_path / "x.jsonl").write_text("hello\n")
    with pytest.raises(UserError, match="no score file of"):
        read_scores([tmp_path / "x.jsonl"])
    (tmp_path / "x.jsonl").write_text("hello")
    with pytest.raises(UserError, match="no score file of"):
        read_scores([tmp_path / "x.jsonl"])
    (tmp_path / "x.jsonl").write_text("")
    with pytest.raises(UserError, match="has no scores yet"):
        read_scores([tmp_path / "x.jsonl"])
    with pytest.raises(UserError, match="No score file was given"):
        read_scores([])
    path = score_file(tmp_path, make(1), [0.5])
    path.write_bytes(path.read_bytes() + b"{\n")
    with pytest.raises(UserError, match="line 3, is damaged"):
        read_scores([path])
    path.write_bytes(path.read_bytes().replace(b"{\n", b"[1]\n"))
    with pytest.raises(UserError, match="line 3, is damaged"):
        read_scores([path])


def test_filters_by_length(tmp_path: Path) -> None:
    records = [{"ifd_loss": 0.5, "tokens": n} for n in (1, 5, 9, 20)]
    assert chosen(tmp_path, records, number=9, min_length=5, max_length=9) == [1, 2]
    assert chosen(tmp_path, records, number=2, by="length") == [2, 3]
    with pytest.raises(UserError, match="do not tell how long"):
        chosen(tmp_path, [{"ifd_loss": 0.5}], number=1, min_length=2)


def test_images_that_do_not_help(tmp_path: Path) -> None:
    records = [
        {"ifd_loss": 0.5, "ifd_image": 0.7},
        {"ifd_loss": 0.9},
        {"ifd_loss": 0.5, "ifd_image": 0.2},
    ]
    rows = make(3)
    scores = read_scores([score_file(tmp_path, rows, records)])
    found = select(
        data_file(tmp_path, rows), scores, Rules(number=1, by="ifd-image", ascending=True)
    )
    assert found.chosen == [2] and found.reasons["no_such_score"] == 1 and not found.faulty
    with pytest.raises(UserError, match="None of these scores is a 'text-loss'"):
        select(data_file(tmp_path, rows), scores, Rules(number=1, by="text-loss"))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({}, "How many rows"),
        ({"top": 0.1, "number": 1}, "How many rows"),
        ({"top": 0.1, "by": "lenght"}, "Unknown --by 'lenght'"),
        ({"top": 0.1, "of": "some"}, "Unknown --of 'some'"),
        ({"top": 0.1, "dedupe": "fuzzy"}, "Unknown --dedupe 'fuzzy'"),
    ],
)
def test_rules_that_make_no_sense(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Rules(**rules)
