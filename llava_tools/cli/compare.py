"""`llava-tools curate compare A B --data F`: two models' answers, by numbers and before a judge."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from llava_tools.cli.options import (
    Device,
    Dtype,
    GiveUpAfter,
    Json,
    KeyVariable,
    PriceIn,
    PriceOut,
    PromptTemplate,
    Retries,
    Timeout,
)
from llava_tools.errors import UserError

if TYPE_CHECKING:
    from llava_tools.backends.request import Meter
    from llava_tools.backends.server import Server
    from llava_tools.curate.compare_rows import Question

Side = Annotated[str, Argument(help="A model, or a .json or .jsonl file of its outputs.")]
JudgeModel = Annotated[
    str | None, Option("--judge", help="Also ask this model at a server which answer is better.")
]
BaseUrl = Annotated[
    str | None, Option(help="The judge's OpenAI-compatible server (.../v1). Default: OpenAI's own.")
]
Parser = Annotated[
    str,
    Option(help="How the judge answers: label, weighted (log-probabilities), ranking or scores."),
]
JudgePrompt = Annotated[
    Path | None,
    Option(
        help="A prompt of your own with {instruction}, {output_1}, {output_2}; plain or ChatML."
    ),
]
Orders = Annotated[str, Option(help="both, or seeded: one order, drawn by AlpacaEval's rule.")]
JudgeTemperature = Annotated[float, Option(min=0, help="The judge's.")]
Concurrency = Annotated[int, Option(min=1, help="Questions to the judge on their way at once.")]
MaxFailed = Annotated[
    float, Option(min=0, max=1, help="Exit with 2 when more than this share has no verdict.")
]
MaxNewTokens = Annotated[int, Option(min=1, help="Longest answer of a model.")]
Temperature = Annotated[float, Option(min=0, help="0: greedy. compare.py's own is 0.7.")]
BatchSize = Annotated[int, Option(min=1, help="Answers of a model in the making at once.")]


def compare(
    a: Side,
    b: Side,
    data: Annotated[Path, Option(help="The questions, each with a reference answer.")],
    work_dir: Annotated[Path, Option(help="Where to write.")] = Path("work_dirs/compare"),
    name_a: Annotated[str, Option(help="How A is called.")] = "base",
    name_b: Annotated[str, Option(help="How B is called.")] = "tuned",
    number: Annotated[
        int | None, Option(min=1, help="Draw so many rows (compare.py: 10). Default: all.")
    ] = None,
    seed: Annotated[int, Option(help="Of the rows drawn, of sampling and of resampling.")] = 0,
    max_new_tokens: MaxNewTokens = 1024,
    temperature: Temperature = 0.0,
    batch_size: BatchSize = 8,
    image_folder: Annotated[str, Option(help="Where the images of rows lie.")] = "",
    prompt_template: PromptTemplate = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    judge: JudgeModel = None,
    base_url: BaseUrl = None,
    parser: Parser = "label",
    judge_prompt: JudgePrompt = None,
    judge_temperature: JudgeTemperature = 0.0,
    orders: Orders = "both",
    concurrency: Concurrency = 8,
    timeout: Timeout = 120.0,
    retries: Retries = 8,
    give_up_after: GiveUpAfter = 20,
    max_failed: MaxFailed = 0.02,
    price_in: PriceIn = 0.0,
    price_out: PriceOut = 0.0,
    key_variable: KeyVariable = "OPENAI_API_KEY",
    as_json: Json = False,
) -> None:
    """Compare two models on the same questions: BLEU-2, ROUGE-1/2/L, a chart, and a judge.

    A killed run goes on where it was, with the same command.
    """
    if name_a == name_b:
        raise UserError(f"A and B are both called '{name_a}'.", "Give --name-a and --name-b.")
    _compare(locals())


def _compare(given: dict[str, Any]) -> None:
    """Ask, compare, write and tell; last of all, refuse what too few verdicts came of."""
    from llava_tools.curate.compare import compare as compared
    from llava_tools.curate.compare import table, write
    from llava_tools.curate.compare_rows import REASONS, read_questions

    number, seed, work_dir = given["number"], given["seed"], given["work_dir"]
    found = read_questions(given["data"], number, seed)
    for reason, count in found.left_out.items():
        first = f"(first: row {found.first[reason]:,})"
        typer.echo(f"{count:,} x {reason}: {REASONS[reason]} {first}", err=True)
    sources = {given["name_a"]: given["a"], given["name_b"]: given["b"]}
    answers = {
        name: answers_of(source, name, found.rows, given, drawn=number is not None)
        for name, source in sources.items()
    }
    report = compared(found.rows, answers) | {"left_out": dict(found.left_out), "seed": seed}
    report["outputs"] = sources
    write(work_dir, report)
    if given["judge"]:
        report["judge"] = _judged(found.rows, list(zip(*answers.values(), strict=True)), given)
        write(work_dir, report)
    if given["as_json"]:
        typer.echo(json.dumps(report, ensure_ascii=False))
    else:
        typer.echo(table(report["metrics"]))
        _tell(report, *sources)
        typer.echo(f"{found.total:,} rows, {len(found.rows):,} compared: {work_dir}")
    if given["judge"]:
        judged = report["judge"]
        refuse(judged["failed"], judged["questions"], given["max_failed"])


def answers_of(
    source: str, name: str, rows: list[Question], given: Mapping[str, Any], *, drawn: bool
) -> list[str]:
    """Return the answers out of a file of outputs, or of a model (kept in the work dir)."""
    if Path(source).suffix in (".json", ".jsonl"):
        from llava_tools.curate.compare_rows import read_outputs

        return read_outputs(Path(source), rows, drawn=drawn)
    from llava_tools.chat.outputs import outputs_of
    from llava_tools.chat.start import open_assistant
    from llava_tools.model.generate import GenerationSettings

    which = {key: given[key] for key in ("dtype", "device")}
    which["template"] = given["prompt_template"]
    settings = GenerationSettings(
        max_new_tokens=given["max_new_tokens"],
        temperature=given["temperature"],
        seed=given["seed"],
    )
    return outputs_of(
        partial(open_assistant, source, **which),
        [row.prompt_row() for row in rows],
        given["work_dir"],
        name,
        settings,
        made_by={"model": source, **which},
        batch_size=given["batch_size"],
        image_folder=given["image_folder"],
    )


def server(given: Mapping[str, Any], model: str) -> Server:
    """Return the judge's server; what it says is kept in the work dir."""
    from llava_tools.backends.server import Server, ServerSettings

    names = ("base_url", "key_variable", "concurrency", "timeout", "give_up_after")
    return Server(
        ServerSettings(
            model=model,
            max_retries=given["retries"],
            cache=given["work_dir"] / "verdicts.sqlite",
            **{name: given[name] for name in names},
        )
    )


def _judged(
    rows: list[Question], answers: list[tuple[str, str]], given: Mapping[str, Any]
) -> dict[str, Any]:
    from llava_tools.backends.judge import Pair, read_judge
    from llava_tools.curate.compare_judge import judge_all, summary

    judge = read_judge(given["parser"], given["judge_prompt"], given["judge_temperature"])
    backend = server(given, given["judge"])
    pairs = [Pair(row.text, *pair) for row, pair in zip(rows, answers, strict=True)]
    try:
        with progress("judging") as tell:
            judged = judge_all(backend, judge, pairs, given["orders"], given["seed"], tell)
    finally:
        say_used(backend.meter, given)
    verdicts = [
        [{"preference": v.preference, "reason": v.reason, "reply": v.text} for v in row]
        for row in judged.rows
    ]
    about: dict[str, Any] = {"by": backend.name, "parser": judge.kind, "prompt": judge.text}
    about |= {"orders": given["orders"], "temperature": judge.temperature}
    return summary(judged, given["seed"]) | about | {"verdicts": verdicts}


class progress:  # noqa: N801 - reads like a function where it is used
    """Tells on stderr how many verdicts there are, when the work takes longer."""

    def __init__(self, title: str) -> None:
        self._title = title

    def __enter__(self) -> Callable[[int, int], None]:
        from llava_tools.curate.instruct.watch import Watch

        self._watch = Watch()
        return lambda done, total: self._watch.tell(
            f"{self._title} {done:,}/{total:,}", done, total
        )

    def __exit__(self, *raised: object) -> None:
        with suppress(AttributeError):
            self._watch.end()


def say_used(meter: Meter, given: Mapping[str, Any]) -> None:
    """Say on stderr what the judge was asked, and what it cost."""
    prices = given["price_in"], given["price_out"]
    cost = f", cost {meter.cost(*prices):,.4f}" if any(prices) else ""
    typer.echo(f"judge: {meter.line()}{cost}", err=True)


def refuse(failed: int, total: int, max_failed: float) -> None:
    """Raise UserError when more questions than allowed have no verdict."""
    if failed > max_failed * total:
        raise UserError(
            f"{failed:,} of {total:,} questions have no verdict, more than --max-failed "
            f"{max_failed:g} allows.",
            "The results are written, with bounds. Ask again, or another judge or --parser.",
        )


def tell_reasons(reasons: Mapping[str, int]) -> None:
    """Print why verdicts are missing."""
    from llava_tools.backends.judge import REASONS

    for reason, count in reasons.items():
        typer.echo(f"  {count:,} x {reason}: {REASONS[reason]}")


def _tell(report: Mapping[str, Any], name_a: str, name_b: str) -> None:
    for name, count in report["without_rouge"].items():
        if count:
            typer.echo(f"{count:,} answers of {name} are empty or have no word: without ROUGE")
    found = report.get("judge")
    if found is None:
        return
    wins = f"{found['win']:,} wins, {found['tie']:,} ties, {found['loss']:,} losses"
    typer.echo(f"judge, {name_b} against {name_a}: {wins}, {found['failed']:,} without a verdict")
    if found["win_rate"] is not None:
        low, high = found["interval"]
        typer.echo(f"  win rate {found['win_rate']:.2f} % (95 %: {low:.2f} to {high:.2f})")
        typer.echo(f"  winning score {found['winning_score']:.3f} (above 1: {name_b} is better)")
    if found["failed"]:
        low, high = found["bounds"]
        typer.echo(f"  between {low:.2f} % if all failures were lost, and {high:.2f} % if won")
    if found["first_shown"] is not None:
        twice = f"; {found['contradictions']:,} contradictions" if found["orders"] == "both" else ""
        typer.echo(f"  the answer shown first was chosen in {found['first_shown']:.1f} %{twice}")
    tell_reasons(found["reasons"])
