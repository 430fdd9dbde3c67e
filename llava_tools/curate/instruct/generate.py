"""New instructions from seeds, in rounds: ask, read, filter, keep what has not been said before.

A round's prompts depend on the seed, on its number and on what was accepted before it, and its
replies are read in the order of its requests: a run that was killed makes the same rounds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from llava_tools.backends.request import Failure, Reply, Request
from llava_tools.curate.instruct.filters import SIMILAR, example_fault, instruction_fault
from llava_tools.curate.instruct.job import Job, Tally, reasons
from llava_tools.curate.instruct.kinds import KINDS, Found, Kind
from llava_tools.curate.instruct.rouge import Known, Scores, ascii_words, words
from llava_tools.curate.instruct.seeds import Task
from llava_tools.curate.instruct.store import Record
from llava_tools.errors import UserError

ROUNDS = "rounds.jsonl"
AWAY = {"timeout", "no_connection", "rate_limited", "server_error"}
TRIES = 3  # of a round; what was answered is not asked again


def generate(job: Job) -> Tally:
    """Make rounds until the number of instructions is there.

    Raises UserError when `patience` rounds in a row gave nothing new, with the reasons counted.
    """
    kind, options = KINDS[job.options.variant], job.options
    tally = Tally("generate", file=job.work.path / kind.file)
    seeds = [
        task for task in job.seeds.tasks if task.is_classification or not options.label_seeds_only
    ]
    if not seeds:
        raise UserError("No seed task is classification.", "Leave out --clf-seeds-only.")
    with job.work.log(kind.file) as log, job.work.log(ROUNDS) as rounds:
        log.cut(rounds.rows[-1]["accepted"] if rounds.rows else 0)  # of a round cut short
        pool = _Pool(job, kind, seeds, log.rows)
        idle = 0
        while len(log.rows) < options.number:
            found, rows = pool.round(len(rounds.rows))
            tally.add(found)
            log.append(rows)
            rounds.append([_record(found, len(log.rows))])
            idle = 0 if rows else idle + 1
            told = f"{len(log.rows):,} of {options.number:,} instructions, round {len(rounds.rows)}"
            job.watch.tell(told, len(log.rows), options.number)
            if idle >= options.patience:
                raise _no_progress(idle, tally)
        tally.made = len(log.rows)
    return tally


def _record(found: Tally, accepted: int) -> Record:
    counts = {"failed": found.failed, "dropped": found.dropped}
    return {"accepted": accepted, "asked": found.asked, **counts}


def _no_progress(rounds: int, tally: Tally) -> UserError:
    return UserError(
        f"{rounds} rounds of requests in a row gave no new instruction; in all: "
        f"{reasons(tally.failed + tally.dropped)}.",
        "What was made is kept. Try another model, more seeds, a smaller --number, or, where "
        "prompts do not fit, fewer --max-tokens and --examples.",
    )


class _Pool:
    """The seeds and what was accepted so far."""

    def __init__(self, job: Job, kind: Kind, seeds: list[Task], rows: list[Record]) -> None:
        self.job, self.kind, self.seeds = job, kind, seeds
        self.made = [row["instruction"] for row in rows]
        self.known = Known(ascii_words if job.options.compat else words)
        for text in [task.instruction for task in seeds] + self.made:
            self.known.add(text)
        # As upstream, whose prompts begin from the first one again after a restart.
        self._compat_rng = random.Random(job.options.seed)

    def round(self, number: int) -> tuple[Tally, list[Record]]:
        """Ask a round; return what came of it, and the accepted rows."""
        count = self.job.options.per_round
        requests = [self._request(number * count + i) for i in range(count)]
        answers = self._answers(requests)
        tally = Tally("round", asked=count)
        rows: list[Record] = []
        for i, request in enumerate(requests):
            result = answers[i]
            if isinstance(result, Failure):
                tally.fail(result.reason, result.detail)
                continue
            found = self.kind.read(result, self.job.options, len(self.seeds))
            if isinstance(found, str):
                tally.fail(found, result.text[:200])
                continue
            for item in found:
                kept = self._judge(item)
                if isinstance(kept, str):
                    tally.dropped[kept] += 1
                else:
                    rows.append(self.kind.row(item, kept, request, result))
                    rows[-1]["request_idx"] = number * count + i
        return tally, rows

    def _answers(self, requests: list[Request]) -> dict[int, Reply | Failure]:
        """Return what came back by position. Raises UserError where the server is away.

        Then nothing of the round is decided, so that it is the same round when it comes back.
        """
        for _ in range(TRIES):
            answers = dict(self.job.replies(requests))
            failures = [result for result in answers.values() if isinstance(result, Failure)]
            away = [failure for failure in failures if failure.reason in AWAY]
            if not away:
                return answers
        raise UserError(
            f"{len(away):,} of {len(requests):,} requests of a round failed {TRIES} times; the "
            f"last one: {away[-1]}.",
            "What was answered is kept: run the same command again when the server answers.",
        )

    def _request(self, index: int) -> Request:
        seed = self.job.options.seed
        rng = self._compat_rng if self.job.options.compat else random.Random(f"{seed} {index}")
        return self.kind.ask(self.job, rng, self.seeds, self.made, str(index))

    def _judge(self, item: Found) -> Record | str:
        """Return how similar an instruction is to known ones and add it to these, or its fault."""
        text, instance = item
        fault = instruction_fault(text, self.kind.beyond, compat=self.job.options.compat)
        if not fault and instance and not self.job.options.compat:
            fault = example_fault(instance)
        if fault:
            return fault
        scores = self.known.scores(text)
        if scores.size and scores.max() > SIMILAR:
            return "similar"
        similar = _similar(scores, self.known.texts)
        self.known.add(text)
        self.made.append(text)
        return similar


def _similar(scores: Scores, texts: Sequence[str]) -> Record:
    """Return the ten most similar texts with their scores, and the mean of all scores."""
    best = np.argsort(scores, kind="stable")[-10:][::-1]
    most = {texts[i]: float(scores[i]) for i in best}
    return {"most_similar": most, "avg_similarity_score": float(np.mean(scores))}
