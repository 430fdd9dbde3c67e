"""`llava-tools eval alpaca MODEL|OUTPUTS --reference OUTPUTS --annotator NAME --base-url URL`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from llava_tools.cli.compare import (
    BaseUrl,
    BatchSize,
    Concurrency,
    JudgePrompt,
    JudgeTemperature,
    MaxFailed,
    MaxNewTokens,
    Parser,
    Temperature,
    progress,
    refuse,
    say_used,
    server,
    tell_reasons,
)
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
    from llava_tools.eval.alpaca_files import Outputs


def alpaca(
    source: Annotated[
        str,
        Argument(
            metavar="MODEL|OUTPUTS",
            help="A model, its model_outputs.json, or an annotations.json to compute again.",
        ),
    ],
    reference: Annotated[
        Path | None, Option(help="The answers to beat: a model_outputs.json.")
    ] = None,
    annotator: Annotated[str | None, Option(help="The judge's name at its server.")] = None,
    base_url: BaseUrl = None,
    parser: Parser = "weighted",
    judge_prompt: JudgePrompt = None,
    judge_temperature: JudgeTemperature = 0.0,
    name: Annotated[
        str | None, Option(help="How the model is called. Default: its file's.")
    ] = None,
    work_dir: Annotated[
        Path | None, Option(help="Where to write. Default: ./work_dirs/alpaca/<name>.")
    ] = None,
    difficulty: Annotated[
        Path | None, Option(help="AlpacaEval's instruction_difficulty.csv, for length control.")
    ] = None,
    gamed: Annotated[
        Path | None,
        Option(help="AlpacaEval's df_gamed.csv, for length control; holds the difficulties, too."),
    ] = None,
    max_new_tokens: MaxNewTokens = 2048,
    temperature: Temperature = 0.0,
    batch_size: BatchSize = 8,
    prompt_template: PromptTemplate = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    seed: Annotated[int, Option(help="Of the order of the answers.")] = 0,
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
    """AlpacaEval: how often a judge prefers a model's answers, also at equal length.

    A killed run goes on where it was, with the same command.
    """
    _evaluate(source, locals())


def _evaluate(source: str, given: dict[str, Any]) -> None:
    """Judge, or read what was judged; write and tell; refuse what too few verdicts came of."""
    from llava_tools.eval.alpaca import read_annotations, score, write

    lengths: list[int] | None = None
    if Path(source).suffix == ".json" and _annotated(Path(source)):
        annotations = read_annotations(Path(source))
        called = given["name"] or str(annotations[0].get("generator_2") or Path(source).parent.name)
    else:
        annotations, called, lengths = _annotate(source, given)
    scores = score(annotations, given["difficulty"], given["gamed"], lengths)
    folder = given["work_dir"] or Path("work_dirs/alpaca") / _plain(called)
    write(folder, called, annotations, scores)
    if given["as_json"]:
        typer.echo(json.dumps({"model": called} | scores, ensure_ascii=False))
    else:
        _tell(called, scores, folder)
    refuse(scores["failed"], scores["rows"], given["max_failed"])


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip(".") or "model"


def _is_file(source: str) -> bool:
    return Path(source).suffix in (".json", ".jsonl")


def _annotated(path: Path) -> bool:
    from llava_tools.eval.alpaca_files import read_rows

    return "preference" in read_rows(path, ("instruction",))[0]


def _annotate(source: str, given: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str, list[int]]:
    """Return the judge's annotations, the model's name, and the lengths of all its outputs."""
    if not given["reference"] or not given["annotator"]:
        raise UserError(
            "Who judges, and against what? --reference and --annotator are needed.",
            "Give a reference's model_outputs.json and the judge's name, or an annotations.json.",
        )
    from llava_tools.backends.judge import read_judge
    from llava_tools.eval.alpaca import annotate, match
    from llava_tools.eval.alpaca_files import read_outputs, write_json

    judge = read_judge(given["parser"], given["judge_prompt"], given["judge_temperature"])
    reference = read_outputs(given["reference"])
    called = given["name"] or (None if _is_file(source) else Path(source).name)
    folder = given["work_dir"] or Path("work_dirs/alpaca") / _plain(called or Path(source).stem)
    model = _outputs(source, reference, given, folder, called)
    _, missing, more = match(model, reference)
    if missing or more:
        text = f"{missing:,} instructions have no output, {more:,} outputs no reference: left out"
        typer.echo(text, err=True)
    write_json(folder / "model_outputs.json", list(model.rows))
    write_json(folder / "reference_outputs.json", list(reference.rows))
    backend = server({**given, "work_dir": folder}, given["annotator"])
    try:
        with progress("judging") as tell:
            annotations = annotate(model, reference, backend, judge, given["seed"], tell)
    finally:
        say_used(backend.meter, given)
    return annotations, model.generator, [len(row["output"]) for row in model.rows]


def _outputs(
    source: str, reference: Outputs, given: Mapping[str, Any], folder: Path, called: str | None
) -> Outputs:
    """Read the outputs, or let the model answer the reference's instructions."""
    from llava_tools.eval.alpaca_files import Outputs, read_outputs

    if _is_file(source):
        found = read_outputs(Path(source))
        return Outputs(called or found.generator, found.rows)
    from llava_tools.chat.outputs import outputs_of
    from llava_tools.chat.start import open_assistant
    from llava_tools.model.generate import GenerationSettings

    which = {key: given[key] for key in ("dtype", "device")}
    which["template"] = given["prompt_template"]
    name = called or Path(source).name
    settings = GenerationSettings(
        max_new_tokens=given["max_new_tokens"], temperature=given["temperature"]
    )
    asked = [{"instruction": row["instruction"]} for row in reference.rows]
    answers = outputs_of(
        partial(open_assistant, source, **which),
        asked,
        folder,
        _plain(name),
        settings,
        made_by={"model": source, **which},
        batch_size=given["batch_size"],
    )
    rows = [
        {"instruction": row["instruction"], "output": answer, "generator": name}
        for row, answer in zip(asked, answers, strict=True)
    ]
    return Outputs(name, tuple(rows))


def _tell(name: str, scores: Mapping[str, Any], folder: Path) -> None:
    line, control = scores["leaderboard"], scores["length_control"]
    if line["win_rate"] is None:
        typer.echo(f"{name}: no verdict at all")
    else:
        error = f" (standard error {line['standard_error']:.2f})" if line["n_total"] > 1 else ""
        typer.echo(
            f"{name}: win rate {line['win_rate']:.2f} %{error}, {line['n_total']:,} verdicts"
        )
        wins = f"{line['n_wins']:,} wins, {line['n_draws']:,} draws, {line['n_wins_base']:,} losses"
        typer.echo(f"  {wins}; {line['avg_length']:,} characters on average")
    if control["win_rate"] is None:
        typer.echo(f"  length-controlled: none ({control['problem']})")
    else:
        error, variant = control["standard_error"], VARIANTS[control["variant"]]
        shown = f" (standard error {error:.2f})" if error is not None else ""
        typer.echo(f"  length-controlled: {control['win_rate']:.2f} %{shown}, {variant}")
    if control["warning"]:
        typer.echo(f"  {control['warning']}")
    if scores["failed"]:
        low, high = scores["bounds"]
        typer.echo(
            f"  {scores['failed']:,} without a verdict: between {low:.2f} % and {high:.2f} %"
        )
    tell_reasons(scores["reasons"])
    typer.echo(f"  {folder}")


VARIANTS = {
    "v1": "as AlpacaEval's own (v1)",
    "noreg": "variant noreg: no file of gamed baselines (--gamed)",
    "minimal": "variant minimal: no file of difficulties (--difficulty), compare with none other",
}
