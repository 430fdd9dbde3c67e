"""`llava-tools data audit`: check every row before training does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from llava_tools.cli.options import CfgOptions, ConfigArgument
from llava_tools.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llava_tools.config import DatasetSpec, Settings
    from llava_tools.data.audit import Report
    from llava_tools.data.prepare import Limits
    from llava_tools.data.show import ShownRow


def audit(
    config: ConfigArgument,
    json: Annotated[
        str | None, Option(metavar="FILE", help="Write the report as JSON; - for stdout.")
    ] = None,
    html: Annotated[
        str | None, Option(metavar="FILE", help="Write one page to look at: findings, and rows.")
    ] = None,
    examples: Annotated[
        int, Option(min=1, help="How many examples of each finding, and rows on the page.")
    ] = 10,
    max_rows: Annotated[
        int | None, Option(min=1, help="Check only so many rows of each file, drawn at random.")
    ] = None,
    cfg_options: CfgOptions = None,
) -> None:
    """Check every row of a config's data before training does.

    Faults are rows that training leaves out or stops at: broken images, missing answers, lost
    tokens. Notes are rows that it trains on, such as duplicates. Nothing is changed. Exits with 2
    when training would refuse the data.
    """
    from dataclasses import replace

    import orjson
    import typer

    from llava_tools.config import check_files, load_settings
    from llava_tools.data.audit import audit
    from llava_tools.data.audit_page import to_dict, to_html, to_lines
    from llava_tools.model.vision import check_features
    from llava_tools.train.build import build_image_processor, build_limits, build_tokenizer

    settings = load_settings(config, [*(cfg_options or []), "tokenized_folder=None"])
    check_files(settings, config)
    _check_targets([path for path in (json, html) if path and path != "-"], config, settings)
    if max_rows:
        fewer = tuple(
            replace(s, max_rows=min(max_rows, s.max_rows or max_rows)) for s in settings.datasets
        )
        settings = replace(settings, datasets=fewer)
    tokenizer, limits = build_tokenizer(settings), build_limits(settings)
    processor = build_image_processor(settings)
    if settings.visual_encoder_name_or_path and processor:
        name, layer = settings.visual_encoder_name_or_path, settings.visual_select_layer
        check_features(name, layer, processor.size, limits.image_positions)
    report = audit(settings, tokenizer, limits, examples)
    if json:
        data = orjson.dumps(to_dict(report), option=orjson.OPT_INDENT_2) + b"\n"
        typer.echo(data, nl=False) if json == "-" else _write(json, data)
    if json != "-":
        typer.echo("\n".join(to_lines(report)))
    if html:
        rows = _samples(settings, tokenizer, limits, examples)
        page = to_html(report, rows, tokenizer, processor)
        _write(html, page.encode("utf-8", "replace"))
    _refuse(report, settings)


def _refuse(report: Report, settings: Settings) -> None:
    """Raise UserError where training would."""
    malformed = report.counts["malformed_json"]
    if malformed:
        first = report.examples["malformed_json"][0]
        raise UserError(
            f"Rows that are no valid JSON: {malformed:,}. Training stops at the first of them: "
            f"{first.origin}: {first.detail}",
            "Mend the file; the other rows were checked, too.",
        )
    if not report.seen:
        paths = ", ".join(spec.data_path for spec in settings.datasets)
        raise UserError(f"The training data is empty: {paths}.", "Check `data_path`.")
    if not report.trained:
        raise UserError(
            f"No row can be trained on, all {report.seen:,} are left out.",
            "The report says why: mend the data or the config.",
        )
    if report.faults > settings.max_skipped * report.seen:
        raise UserError(
            f"{report.faults:,} of {report.seen:,} rows have a fault, more than "
            f"max_skipped = {settings.max_skipped:g} allows.",
            "Mend the data or the config, or raise max_skipped.",
        )


def _check_targets(targets: list[str], config: str, settings: Settings) -> None:
    """Refuse what cannot be written, or is an input, before all rows are read."""
    inputs = [Path(path) for path in (config, *(spec.data_path for spec in settings.datasets))]
    if len(targets) == 2 and Path(targets[0]).absolute() == Path(targets[1]).absolute():
        raise UserError(f"--json and --html are both '{targets[0]}'.", "Name two files.")
    for path in map(Path, targets):
        if path.is_dir():
            raise UserError(f"Cannot write '{path}': it is a folder.", "Name a file.")
        if not path.absolute().parent.is_dir():
            raise UserError(f"Cannot write '{path}': its folder is not there.", "Make it first.")
        if path.exists() and any(source.exists() and path.samefile(source) for source in inputs):
            raise UserError(f"'{path}' is one of the inputs.", "Name another file.")


def _write(path: str, data: bytes) -> None:
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise UserError(f"Cannot write '{path}': {error.strerror}.", "Choose another.") from error


def _samples(
    settings: Settings, tokenizer: Any, limits: Limits, count: int
) -> Iterator[tuple[DatasetSpec, ShownRow]]:
    """Yield the first rows that are trained on of each data file."""
    from dataclasses import replace
    from itertools import islice

    from llava_tools.data.sample import Skip
    from llava_tools.data.show import shown_rows

    for spec in settings.datasets:
        only = replace(settings, datasets=(spec,))
        shown = shown_rows(only, tokenizer, limits, pass_over_malformed=True)
        rows = (row for row in shown if not isinstance(row, Skip))
        yield from ((spec, row) for row in islice(rows, count))
