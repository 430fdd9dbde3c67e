"""What a benchmark is: the columns it needs, its questions, and how answers become scores.

A benchmark is a module of its own with one `Benchmark` value, named in the table below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module

from llava_tools.errors import UserError, did_you_mean
from llava_tools.eval.boxes import Box
from llava_tools.eval.intervals import Tallies, bootstrap, intervals
from llava_tools.eval.pictures import Index, Picture
from llava_tools.eval.tsv import Row

BENCHMARKS = {
    "mmbench": "llava_tools.eval.mmbench:MMBENCH",
    "ccbench": "llava_tools.eval.mmbench:CCBENCH",
    "mmmu": "llava_tools.eval.mmmu:MMMU",
    "seed": "llava_tools.eval.seed:SEED",
    "ai2d": "llava_tools.eval.ai2d:AI2D",
    "scienceqa": "llava_tools.eval.scienceqa:SCIENCEQA",
    "mmstar": "llava_tools.eval.mmstar:MMSTAR",
    "hallusion": "llava_tools.eval.hallusion:HALLUSION",
    "pope": "llava_tools.eval.pope:POPE",
    "mme": "llava_tools.eval.mme:MME",
    "gqa": "llava_tools.eval.gqa:GQA",
    "textvqa": "llava_tools.eval.textvqa:TEXTVQA",
    "refcoco": "llava_tools.eval.refcoco:REFCOCO",
}
# Ends the name of a protocol that asks with images inside the text and scores as without the end.
INTERLEAVED = "-interleaved"


@dataclass(frozen=True)
class Question:
    """One row as the model sees it: `prompt` is the user's message, with `<image>` in its place."""

    index: Index
    prompt: str
    pictures: tuple[Picture, ...]
    options: Mapping[str, str]  # letter -> text
    answer: str | None
    category: str | None
    l2_category: str | None
    split: str | None
    row: Row


@dataclass(frozen=True)
class Verdict:
    """What a protocol made of one answer. `choice` None: undecided; `correct` None: no answer.

    `points` is what the answer earns where that is not all or nothing.
    """

    choice: str | None
    correct: bool | None
    points: float | None = None

    @property
    def earned(self) -> float:
        """Points of the answer, 1 for a right one where nothing else is said."""
        return float(bool(self.correct)) if self.points is None else self.points


@dataclass(frozen=True)
class Part:
    """The scores of some questions: metric -> fraction, overall and by group of questions.

    Every table of `groups` is: group name -> metric -> value, with the number of `questions`.
    """

    overall: Mapping[str, float]
    groups: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """The result of scoring: everything, and each split when the data has a split column.

    `counts` says what the numbers rest on: rows, questions, undecided and missing answers, ...
    """

    all: Part
    splits: Mapping[str, Part]
    counts: Mapping[str, int]
    verdicts: Mapping[Index, Verdict]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as data. `score` gets the questions, {index: answer text} and a protocol.

    `question` makes a row's question in the words of a protocol; the same answers may be scored by
    the rules of another. `metrics` names what is shown, the first being the published number.
    """

    name: str
    columns: tuple[str, ...]  # required; `answer` is not
    question: Callable[[Row, str], Question]
    score: Callable[[Sequence[Question], Mapping[Index, str], str], Scores]
    protocols: tuple[str, ...]  # the first is the default
    max_new_tokens: int
    metrics: Mapping[str, str]  # metric -> heading; one that ends in % is shown times 100
    submission_columns: tuple[str, ...] = ()
    published: Mapping[str, str] = field(default_factory=dict)  # md5 -> name of a known file
    # What the bootstrap draws, for scores that are no mean over independent questions.
    tallies: Callable[[Sequence[tuple[Question, Verdict]], str], Tallies] | None = None
    # (question, answer, protocol) -> the right box and the answer's, in fractions of the sides.
    boxes: Callable[[Question, str, str], tuple[Box, Box | None]] | None = None


def get_benchmark(name: str) -> Benchmark:
    """Return the benchmark of that name. Raises UserError with the nearest name otherwise."""
    key = name.lower()
    if key not in BENCHMARKS:
        raise UserError(f"Unknown benchmark '{name}'.", did_you_mean(key, BENCHMARKS))
    module, _, attribute = BENCHMARKS[key].partition(":")
    found = getattr(import_module(module), attribute)
    assert isinstance(found, Benchmark)
    return found


def spread(
    benchmark: Benchmark, scores: Scores, questions: Sequence[Question], protocol: str, split: str
) -> tuple[dict[str, tuple[float, float]], str]:
    """Return the 95 % intervals of a split's scores ("": of all), and how they were made."""
    part = scores.splits[split] if split else scores.all
    wilson = intervals(part.overall)
    if benchmark.tallies is None:
        return wilson, "Wilson"
    rows = [(q, scores.verdicts[q.index]) for q in questions if not split or q.split == split]
    tallies = benchmark.tallies(rows, protocol)
    return wilson | bootstrap(tallies), str(tallies)


def check_protocol(benchmark: Benchmark, protocol: str) -> str:
    """Return `protocol` if the benchmark is scored by it. Raises UserError otherwise."""
    if protocol not in benchmark.protocols:
        raise UserError(
            f"'{benchmark.name}' is not scored by a protocol '{protocol}'.",
            did_you_mean(protocol, benchmark.protocols),
        )
    return protocol
