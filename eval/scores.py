"""Circular and vanilla accuracy, overall, per category, per l2-category and per split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from llava_tools.errors import UserError
from llava_tools.eval.benchmark import Part, Question, Scores, Verdict
from llava_tools.eval.choices import CHOOSERS
from llava_tools.eval.pictures import Index

T = TypeVar("T")

# Copy r of question i has the index i + r * COPY_STEP and the options rolled by r places.
COPY_STEP = 1_000_000

# The short names under which results are published.
L2_NAMES = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}


@dataclass(frozen=True)
class Outcome:
    """One question with all its copies. Its category is that of `base`, the row below COPY_STEP."""

    base: Question
    rights: tuple[bool, ...]  # of each copy in index order; the first is the base's

    @property
    def circular(self) -> bool:
        """True when every copy is right; an undecided or a missing answer is not."""
        return all(self.rights)


def circular_scores(
    questions: Sequence[Question], answers: Mapping[Index, str], protocol: str
) -> Scores:
    """Score multiple-choice answers {index: text}; every question must have its answer letter.

    A row that is missing from `answers` counts as wrong. Raises UserError for copies without
    their question.
    """
    choose = CHOOSERS[protocol]
    verdicts: dict[Index, Verdict] = {}
    for question in questions:
        given = answers.get(question.index)
        choice = None if given is None else choose(given, question.options)
        verdicts[question.index] = Verdict(choice, choice == question.answer)
    outcomes = [_outcome(copies, verdicts) for copies in _by_question(questions)]
    names = sorted({o.base.split for o in outcomes if o.base.split is not None})
    splits = {name: _part([o for o in outcomes if o.base.split == name]) for name in names}
    counts = _counts(questions, answers, verdicts, outcomes)
    return Scores(_part(outcomes), splits, counts, verdicts)


def _by_question(questions: Iterable[Question]) -> list[list[Question]]:
    """Return the copies of each question in index order, the question itself first.

    A column `g_index` names the question instead of the index, as in VLMEvalKit of 2026.
    """
    groups: dict[int, list[tuple[int, Question]]] = defaultdict(list)
    for question in questions:
        if not isinstance(question.index, int):
            raise UserError(
                f"{question.row.where}: the index is no whole number.",
                "Circular scoring finds the copies of a question by their number.",
            )
        groups[_base(question, question.index)].append((question.index, question))
    result = []
    for base, copies in groups.items():
        copies.sort(key=lambda pair: (pair[0] != base, pair[0]))
        if copies[0][0] != base:
            raise UserError(
                f"{copies[0][1].row.where} is a copy of question {base}, which is in no row.",
                "The file is incomplete: fetch it again, or remove the copies too.",
            )
        result.append([question for _, question in copies])
    return result


def _base(question: Question, index: int) -> int:
    named = question.row.cells.get("g_index", "")
    try:
        return base_of(index, named)
    except ValueError as error:
        raise UserError(
            f"{question.row.where}: g_index is '{named:.40}', which is no whole number.",
            "It names the question that a row is a copy of by its index.",
        ) from error


def base_of(index: int, g_index: str) -> int:
    """Return the index of the question that a row is a copy of; `g_index` says it where it stands.

    Raises ValueError for a `g_index` that is no whole number.
    """
    named = g_index.strip().removesuffix(".0")
    return int(named) if named else index % COPY_STEP


def _outcome(copies: Sequence[Question], verdicts: Mapping[Index, Verdict]) -> Outcome:
    return Outcome(copies[0], tuple(bool(verdicts[q.index].correct) for q in copies))


def _part(outcomes: Sequence[Outcome]) -> Part:
    names: dict[str, Callable[[Outcome], str | None]] = {
        "l2_category": lambda outcome: _short(outcome.base.l2_category),
        "category": lambda outcome: outcome.base.category,
    }
    return Part(_metrics(outcomes), by_group(outcomes, names, _metrics))


def by_group(
    rows: Sequence[T],
    names: Mapping[str, Callable[[T], str | None]],
    metrics: Callable[[Sequence[T]], Mapping[str, float]],
) -> dict[str, dict[str, Mapping[str, float]]]:
    """Return a table for each kind of group that some row is in: group -> metrics of its rows."""
    tables = {}
    for kind, name_of in names.items():
        members: dict[str, list[T]] = defaultdict(list)
        for row in rows:
            if (name := name_of(row)) is not None:
                members[name].append(row)
        if members:
            tables[kind] = {name: metrics(members[name]) for name in sorted(members)}
    return tables


def _short(name: str | None) -> str | None:
    return name if name is None else L2_NAMES.get(name, name)


def _metrics(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return fractions: circular, vanilla (the questions themselves), vanilla_all (every row)."""
    rows = [right for outcome in outcomes for right in outcome.rights]
    return {
        "circular": sum(o.circular for o in outcomes) / len(outcomes),
        "vanilla": sum(o.rights[0] for o in outcomes) / len(outcomes),
        "vanilla_all": sum(rows) / len(rows),
        "questions": len(outcomes),
    }


def _counts(
    questions: Sequence[Question],
    answers: Mapping[Index, str],
    verdicts: Mapping[Index, Verdict],
    outcomes: Sequence[Outcome],
) -> dict[str, int]:
    answered = [q for q in questions if q.index in answers]
    return {
        "rows": len(questions),
        "questions": len(outcomes),
        "answered": len(answered),
        "missing": len(questions) - len(answered),
        "undecided": sum(verdicts[q.index].choice is None for q in answered),
        "questions_without_all_copies": sum(len(o.rights) < len(o.base.options) for o in outcomes),
    }
