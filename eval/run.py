"""Answer a benchmark with a model and score it: `llava-tools eval mmbench MODEL --data-path F`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from llava_tools.backends.request import Backend
from llava_tools.errors import UserError
from llava_tools.eval.answer_log import Answer, AnswerLog, check_fingerprint, saved_header
from llava_tools.eval.answering import answer_all
from llava_tools.eval.benchmark import Benchmark, Question, check_protocol, get_benchmark
from llava_tools.eval.endpoint import ask_all
from llava_tools.eval.predictions import read_predictions
from llava_tools.eval.progress import Rows
from llava_tools.eval.provenance import model_fingerprint, prompts_digest, versions
from llava_tools.eval.report import Report, can_score, finish
from llava_tools.eval.shares import (
    FILE_NAME,
    Place,
    agreed,
    check_parent,
    connect,
    merge,
    place_here,
    share,
)
from llava_tools.eval.sources import open_table
from llava_tools.eval.tsv import Table
from llava_tools.model.generate import GenerationSettings
from llava_tools.model.load import Assistant, load_assistant

log = logging.getLogger(__name__)


def evaluate(
    benchmark: str,
    model_path: str | Path,
    data_path: str | Path,
    work_dir: str | Path | None = None,
    *,
    protocol: str | None = None,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    stop_words: Sequence[str] = (),
    blank_images: bool = False,
    image_folder: str | Path | None = None,
    answers: str | Path | None = None,
    assistant: Assistant | None = None,
    server: Backend | None = None,
    **loading: Any,
) -> Report:
    """Answer every row with greedy decoding, score the answers and write both to `work_dir`.

    Answers are on disk as soon as they are there: the same call again goes on after a kill. The
    default work dir is `work_dirs/<model>/<table>`. `blank_images` shows grey pictures instead.
    `image_folder` has the pictures of a file that only names them, `answers` the right answers of
    one without. An `assistant` that is loaded already is used instead of loading `model_path` with
    the options `loading` of `load_assistant` (`prompt_template` is its `template`); or a `server`
    answers. Under torchrun every process answers its share; the report is the same for all.

    Raises UserError for a table, a model or settings that do not work, and when `work_dir` holds
    the answers of another run.
    """
    chosen = get_benchmark(benchmark)
    protocol = check_protocol(chosen, protocol or chosen.protocols[0])
    settings = _settings(chosen, max_new_tokens, stop_words, batch_size)
    table = open_table(chosen, data_path, image_folder=image_folder, answers=answers)
    _refuse_unasked(table)
    questions = [chosen.question(row, protocol) for row in table.rows]
    if can_score(questions):
        chosen.score(questions, {}, protocol)  # refuses a table that could not be scored
    folder = Path(work_dir or Path("work_dirs") / Path(model_path).resolve().name / table.path.stem)
    fingerprint = _fingerprint(chosen, table, questions, settings, blank_images)
    before = saved_header(folder)
    if before is not None:  # before minutes are spent on loading the model
        check_fingerprint(folder / FILE_NAME, before, fingerprint)
    place = place_here()
    if server is None and assistant is None:
        assistant = load(model_path, **loading)
    asker = Asker(table, settings, batch_size, blank_images, assistant, server)
    fingerprint |= asker.fingerprint()
    info = {"model": str(model_path), **asker.info(), "asked_as": protocol}
    beside = {"image_folder": image_folder, "answers": answers}
    info |= {name: str(path) for name, path in beside.items() if path}
    connect(place)
    with AnswerLog(folder, fingerprint, info, place) as kept:
        with agreed(place):
            kept.read()
        with agreed(place):
            kept.open()
            _answer_rest(asker, questions, kept, place)
        with agreed(place):
            if place.rank == 0:
                merge(folder, questions)
    found = read_predictions(folder / FILE_NAME)
    return finish(chosen, table, questions, found, protocol, None if place.rank else folder)


def load(
    model_path: str | Path, *, prompt_template: str | None = None, **loading: Any
) -> Assistant:
    """Load the model by `load_assistant`, under torchrun to a GPU of the process's own."""
    place = place_here()
    if place.world > 1 and loading.get("device", "auto") == "auto" and torch.cuda.is_available():
        loading["device"] = f"cuda:{place.local_rank}"
    return load_assistant(model_path, template=prompt_template, **loading)


def _fingerprint(
    benchmark: Benchmark,
    table: Table,
    questions: Sequence[Question],
    settings: GenerationSettings,
    blank_images: bool,
) -> dict[str, Any]:
    """Return what decides the answers, besides the model."""
    return {
        "benchmark": benchmark.name,
        "data_md5": table.md5,
        "prompts": prompts_digest(questions),
        "max_new_tokens": settings.max_new_tokens,
        "stop_words": list(settings.stop_words),
        "blank_images": blank_images,
    }


@dataclass(frozen=True)
class Asker:
    """Who answers, a loaded model or a server, and how."""

    table: Table
    settings: GenerationSettings
    batch_size: int
    blank_images: bool
    assistant: Assistant | None
    server: Backend | None

    def fingerprint(self) -> dict[str, Any]:
        """Return what of the model decides its answers."""
        if self.assistant is not None:
            return model_fingerprint(self.assistant)
        assert self.server is not None
        return {
            "server": self.server.name,
            "prompt_template": "the server's",
            "dtype": "dtype its own",
        }

    def info(self) -> dict[str, Any]:
        """Return what is worth knowing of a run and does not keep it from being resumed."""
        known: dict[str, Any] = {"generation": asdict(self.settings), "versions": versions()}
        if self.assistant is not None:
            device = str(self.assistant.model.device)
            known |= {"format": self.assistant.format, "device": device}
        return known | {"batch_size": self.batch_size}

    def answers(self, questions: Sequence[Question]) -> Iterator[list[Answer]]:
        """Yield answers in the order in which they come."""
        if self.server is not None:
            return ask_all(
                self.server, self.table, questions, self.settings, blank_images=self.blank_images
            )
        assert self.assistant is not None
        return answer_all(
            self.assistant, self.table, questions, self.settings,
            batch_size=self.batch_size, blank_images=self.blank_images,
        )  # fmt: skip


def _refuse_unasked(table: Table) -> None:
    if any(row.cells.get("question") == row.index for row in table.rows):
        raise UserError(
            f"'{table.path}' holds answers without their questions.",
            "It serves to score predictions only: give the benchmark's TSV.",
        )


def _settings(
    benchmark: Benchmark, max_new_tokens: int | None, stop_words: Sequence[str], batch_size: int
) -> GenerationSettings:
    tokens = benchmark.max_new_tokens if max_new_tokens is None else max_new_tokens
    for name, value in (("--batch-size", batch_size), ("--max-new-tokens", tokens)):
        if value < 1:
            raise UserError(f"{name} is {value}.", "It must be at least 1.")
    return GenerationSettings(max_new_tokens=tokens, stop_words=tuple(stop_words))


def _answer_rest(
    asker: Asker, questions: Sequence[Question], answers: AnswerLog, place: Place
) -> None:
    """Answer this process's share of the questions that have no answer on disk yet."""
    rest = [question for question in questions if question.index not in answers.done]
    done = len(questions) - len(rest)
    if done:
        log.info("%d of %d rows are answered already in '%s'.", done, len(questions), answers.path)
    own = share(rest, place) if place.world > 1 else rest
    by_index = {question.index: question for question in own}
    with Rows(asker.table.path.stem, done + len(own), done) as progress:
        for batch in asker.answers(own):
            answers.append(batch, by_index)
            check_parent(place)
            progress.advance(len(batch))
