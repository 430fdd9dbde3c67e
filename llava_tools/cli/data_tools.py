"""`llava-tools data clean|split|filter|merge|sample|stats|convert`: rows in, rows out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from llava_tools.cli.data_output import Output, check_beside, counter
from llava_tools.cli.options import Json
from llava_tools.errors import UserError

if TYPE_CHECKING:
    from llava_tools.data.tools.files import Tally

Files = Annotated[list[Path], Argument(metavar="IN...", help="Data files, as training reads them.")]
Out = Annotated[Path, Argument(metavar="OUT", help="A .json or .jsonl file.")]
Format = Annotated[str, Option("--format", help="The rows' format. auto: by their keys.")]
Report = Annotated[Path | None, Option(metavar="FILE", help="List dropped and mended rows.")]
MaxDropped = Annotated[float, Option(min=0, max=1, help="Exit with 2 when more are dropped.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace OUT if it exists.")]
Tokenizer = Annotated[
    str | None, Option(metavar="FOLDER", help="Measure in its tokens. Default: characters.")
]


def clean(
    files: Files,
    out: Out,
    keep_mentions: Annotated[
        bool, Option("--keep-mentions", help="Keep rows that name OpenAI or ChatGPT.")
    ] = False,
    html: Annotated[
        bool, Option("--html", help="Turn answers copied off a page as HTML into Markdown.")
    ] = False,
    format: Format = "auto",  # noqa: A002
    report: Report = None,
    max_dropped: MaxDropped = 1.0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Drop broken, short and repeated conversations, by reasons that are counted."""
    from llava_tools.data.tools.cleaning import clean
    from llava_tools.data.tools.markup import check_markup, without_html

    if html:
        check_markup()

    def made(rows: Any, tally: Tally) -> Any:
        mend = without_html if html else None
        return clean(rows, tally, mentions=not keep_mentions, mend=mend)

    Output(format, report, max_dropped, overwrite, as_json).write(files, out, made)


def split(
    files: Files,
    out: Out,
    budget: Annotated[int, Option(min=1, help="The most that a piece costs.")] = 2048,
    tokenizer: Tokenizer = None,
    format: Format = "auto",  # noqa: A002
    report: Report = None,
    max_dropped: MaxDropped = 1.0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Cut long conversations between pairs of question and answer; no pair is lost."""
    from llava_tools.data.tools.splitting import split

    count = counter(tokenizer)

    def made(rows: Any, tally: Tally) -> Any:
        return split(rows, tally, count, budget)

    Output(format, report, max_dropped, overwrite, as_json).write(files, out, made)


def filter_rows(
    files: Files,
    out: Out,
    min_chars: Annotated[int, Option(min=0, help="The fewest characters of a row.")] = 0,
    max_chars: Annotated[int | None, Option(min=1, help="The most characters of a row.")] = None,
    phrase: Annotated[list[str] | None, Option(help="Drop rows that have this text.")] = None,
    repeated_digits: Annotated[
        bool, Option("--repeated-digits", help="Drop rows with a digit nine times in a row.")
    ] = False,
    list_errors: Annotated[
        bool, Option("--list-errors", help="Drop rows with lists that count 1., 1.")
    ] = False,
    model: Annotated[list[str] | None, Option(help="Keep rows whose `model` is this.")] = None,
    keep_language: Annotated[
        list[str] | None, Option(metavar="CODE", help="Keep rows in this language, such as en.")
    ] = None,
    skip_language: Annotated[
        list[str] | None, Option(metavar="CODE", help="Drop rows in this language.")
    ] = None,
    first_round: Annotated[
        bool, Option("--first-round", help="Keep the first question and answer of each row alone.")
    ] = False,
    format: Format = "auto",  # noqa: A002
    report: Report = None,
    max_dropped: MaxDropped = 1.0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Keep the rows that fit all the rules given."""
    from llava_tools.data.tools.choosing import Rules, filtered
    from llava_tools.data.tools.languages import Languages

    languages = Languages(keep_language or (), skip_language or ())
    languages.check()
    rules = Rules(
        *(min_chars, max_chars, phrase or (), repeated_digits, list_errors, model or ()),
        *(languages, first_round),
    )

    def made(rows: Any, tally: Tally) -> Any:
        return filtered(rows, tally, rules)

    Output(format, report, max_dropped, overwrite, as_json).write(files, out, made)


def merge(
    files: Files,
    out: Out,
    format: Format = "auto",  # noqa: A002
    report: Report = None,
    max_dropped: MaxDropped = 1.0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Put the rows of several files into one; ids that are there twice are reported."""
    from llava_tools.data.tools.choosing import merged

    Output(format, report, max_dropped, overwrite, as_json).write(files, out, merged)


def sample(
    files: Files,
    out: Out,
    rows: Annotated[int, Option(min=1, help="How many.")],
    seed: Annotated[int | None, Option(help="Draw by this seed. Default: the first rows.")] = None,
    format: Format = "auto",  # noqa: A002
    report: Report = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Take the first rows, or a draw by a seed."""
    from llava_tools.data.tools.choosing import sampled

    def made(found: Any, tally: Tally) -> Any:
        return sampled(found, rows, seed)

    Output(format, report, 1.0, overwrite, as_json).write(files, out, made)


def hold_out(
    files: Files,
    out: Out,
    held_out: Annotated[Path, Option("--eval", metavar="FILE", help="Where the others go.")],
    share: Annotated[float, Option(min=0, max=1, help="About how many of them.")] = 0.02,
    seed: Annotated[int, Option(help="Decides which.")] = 0,
    format: Format = "auto",  # noqa: A002
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Split rows into OUT, for training, and --eval; copies of a row are on the same side."""
    from llava_tools.data.tools.choosing import is_held_out
    from llava_tools.data.tools.files import check_out

    check_out(held_out, files, overwrite=overwrite)
    if held_out.resolve() == out.resolve():
        raise UserError(f"OUT and --eval are both '{out}'.", "Name two files.")
    output, told = Output(format, overwrite=overwrite, as_json=as_json), {}
    for name, path, side in (("train", out, False), ("eval", held_out, True)):

        def made(rows: Any, tally: Tally, side: bool = side) -> Any:
            return (r.row for r in rows if is_held_out(r, share, seed) is side)

        told[name] = {"out": str(path)} | output.fill(files, path, made).summary()
    if as_json:
        typer.echo(json.dumps(told))
        return
    for summary in told.values():
        output.say(summary)


def convert(
    files: Files,
    out: Out,
    to: Annotated[str, Option(metavar="llava|sharegpt|messages|alpaca", help="The format.")],
    dataset_info: Annotated[
        Path | None, Option(metavar="FILE", help="Write LLaMA-Factory's dataset_info.json, too.")
    ] = None,
    format: Format = "auto",  # noqa: A002
    report: Report = None,
    max_dropped: MaxDropped = 1.0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write rows in another format; what it cannot hold is counted and listed."""
    from llava_tools.data.tools import converting
    from llava_tools.whole_files import write_whole

    check_beside("--dataset-info", dataset_info, [*files, out], overwrite=overwrite)

    fields: set[str] = set()

    def made(rows: Any, tally: Tally) -> Any:
        for row in converting.convert(rows, tally, to):
            fields.update(row)
            yield row

    Output(format, report, max_dropped, overwrite, as_json).write(files, out, made)
    if dataset_info:
        entry = converting.dataset_info(out.stem, out.name, to, fields)
        write_whole(dataset_info, f"{json.dumps(entry, indent=2)}\n".encode())


def stats(
    files: Files,
    tokenizer: Tokenizer = None,
    format: Format = "auto",  # noqa: A002
    as_json: Json = False,
) -> None:
    """Count rows, answers, images and lengths."""
    from llava_tools.data.tools.files import Tally, read_all
    from llava_tools.data.tools.statistics import describe

    tally, unit = Tally(), "tokens" if tokenizer else "characters"
    found = describe(read_all(files, tally, format), counter(tokenizer), unit)
    found["left_out"] = dict(sorted(tally.reasons.items()))
    if as_json:
        typer.echo(json.dumps(found))
        return
    for name, value in found.items():
        shown = value.items() if isinstance(value, dict) else [("", value)]
        for key, number in shown:
            said = f"{number:.2f}" if isinstance(number, float) else number
            typer.echo(f"{f'{name} {key}'.strip():24} {said}")
