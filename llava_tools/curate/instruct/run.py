"""The stages of a project one after the other, and when a run ends with an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llava_tools.curate.instruct.classify import classify
from llava_tools.curate.instruct.generate import generate
from llava_tools.curate.instruct.images import answer_questions, ask_questions
from llava_tools.curate.instruct.instances import instances
from llava_tools.curate.instruct.job import Job, Options, Tally, reasons
from llava_tools.curate.instruct.prepare import prepare
from llava_tools.curate.instruct.quality import quality
from llava_tools.errors import UserError, did_you_mean

Stage = Callable[[Job], Tally]
VARIANTS: dict[str, dict[str, Stage]] = {
    "self-instruct": {
        "generate": generate,
        "classify": classify,
        "instances": instances,
        "prepare": prepare,
        "quality": quality,
    },
    "alpaca": {"generate": generate, "prepare": prepare, "quality": quality},
    "image": {
        "generate": ask_questions,
        "instances": answer_questions,
        "prepare": prepare,
        "quality": quality,
    },
}
ASKED = ("compat", "completion", "penalties")
# What a stage's lines depend on, beside the model.
FIXED: dict[str, tuple[str, ...]] = {
    "generate": (
        "examples",
        "max_tokens",
        "per_round",
        "seed",
        "label_seeds_only",
        "image_folder",
        "questions",
    ),
    "classify": (),
    "instances": ("max_instances",),
    "quality": (),
}
ONLY = ("classification", "generation")


def check(options: Options, stage: str) -> None:
    """Raise UserError for a variant or stage that is not there, or options that do not fit."""
    if options.variant not in VARIANTS:
        raise UserError(
            f"There is no --variant '{options.variant}'.", did_you_mean(options.variant, VARIANTS)
        )
    stages = VARIANTS[options.variant]
    if stage not in ("all", *stages):
        raise UserError(
            f"--variant {options.variant} has no --stage '{stage}'.",
            f"Known: {', '.join(stages)}, all.",
        )
    if options.only not in (None, *ONLY):
        raise UserError(f"There is no --only '{options.only}'.", f"Known: {', '.join(ONLY)}.")
    image = options.variant == "image"
    if image != bool(options.image_folder):
        raise UserError(
            "--variant image and --image-folder need each other.", "Give both, or neither."
        )
    if image and (options.include_seeds or options.completion):
        raise UserError(
            "--variant image takes no seeds and completes no texts.",
            "Leave out --include-seeds and --completion.",
        )


def run(job: Job, stage: str) -> Iterator[Tally]:
    """Do one stage, or all of the variant (quality only with a threshold); yield what each did.

    Raises UserError when more of a stage's requests failed than `max_failed` allows, when the
    server is gone (with what was counted), or where other settings made what is there.
    """
    options = job.options
    job.work.bind("project", {"variant": options.variant})
    stages = VARIANTS[options.variant]
    usual = [name for name in stages if name != "quality" or options.min_quality is not None]
    for name in usual if stage == "all" else [stage]:
        if name in FIXED:
            job.work.bind(name, _fingerprint(job, name))
        job.watch.begin()
        try:
            tally = stages[name](job)
        except UserError as error:
            raise _counted(error, job) from error
        finally:
            job.watch.end()
        yield tally
        _check_failed(tally, options.max_failed)


def _fingerprint(job: Job, stage: str) -> dict[str, Any]:
    made = {name: getattr(job.options, name) for name in (*ASKED, *FIXED[stage])}
    seeds = {"seeds": job.seeds.digest} if stage == "generate" else {}
    return {"model": job.model, **seeds, **made}


def _counted(error: UserError, job: Job) -> UserError:
    """Return an error that ends a stage, with the failures of the run by reason."""
    if not job.watch.meter.failures:
        return error
    return UserError(f"{error.message} In this run: {job.watch.used()}.", error.hint)


def _check_failed(tally: Tally, allowed: float) -> None:
    failed = sum(tally.failed.values())
    if failed > allowed * tally.asked:
        raise UserError(
            f"{failed:,} of {tally.asked:,} requests of the stage '{tally.stage}' gave nothing "
            f"usable, more than --max-failed {allowed:g} allows: {reasons(tally.failed)}.",
            "What came is kept: the same command asks for the rest. Else raise --max-failed.",
        )
