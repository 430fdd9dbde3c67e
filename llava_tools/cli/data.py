"""`llava-tools data show`, known to XTuner's users as `log-dataset`."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from llava_tools.cli.options import CfgOptions, ConfigArgument, Json

ROWS = 5  # for people; scripts get them all


def show(
    config: ConfigArgument,
    rows: Annotated[
        int | None, Option(min=1, help=f"How many rows. Default: {ROWS}, with --json all.")
    ] = None,
    cfg_options: CfgOptions = None,
    as_json: Json = False,
) -> None:
    """Show rows as the model gets them, the tokens it is trained on coloured."""
    from llava_tools.config import load_settings
    from llava_tools.data.show import show
    from llava_tools.train.build import build_tokenizer

    settings = load_settings(config, cfg_options or [])
    count = rows if rows or as_json else ROWS
    show(settings, build_tokenizer(settings), count, as_json=as_json)
