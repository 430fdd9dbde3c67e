"""`llava-tools eval lm MODEL --tasks ...` and `eval lm-report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from llava_tools.cli.options import (
    Adapter,
    Bits,
    Device,
    DoubleQuant,
    Dtype,
    Json,
    ModelArgument,
    QuantType,
    RunConfig,
    quantization,
)

Tasks = Annotated[str | None, Option(help="Tasks of lm-eval, with commas between.")]
Preset = Annotated[str | None, Option(help="open-llm-v1 or mobilellama, instead of --tasks.")]
Shots = Annotated[int | None, Option(min=0, help="Default: what each task says.")]
Limit = Annotated[int | None, Option(min=1, help="Only the first rows of each task.")]
BatchSize = Annotated[int, Option(min=1, help="Rows at a time.")]
IncludePath = Annotated[Path | None, Option(help="Folder of task files (YAML) of your own.")]
DataRoot = Annotated[Path | None, Option(help="Folder of data sets by their names on the hub.")]
WorkDir = Annotated[Path | None, Option(help="Default: ./work_dirs/<model>/lm.")]
ChatTemplate = Annotated[bool, Option("--apply-chat-template", help="Ask as in a chat.")]
Results = Annotated[
    list[Path], Argument(metavar="RESULTS...", help="results.json files, the base first.")
]
Picture = Annotated[Path | None, Option(help="Also draw a bar chart into this PNG.")]


def lm(
    model: ModelArgument,
    tasks: Tasks = None,
    preset: Preset = None,
    adapter: Adapter = None,
    bits: Bits = None,
    quant_type: QuantType = "nf4",
    double_quant: DoubleQuant = True,
    num_fewshot: Shots = None,
    limit: Limit = None,
    batch_size: BatchSize = 8,
    include_path: IncludePath = None,
    data_root: DataRoot = None,
    work_dir: WorkDir = None,
    apply_chat_template: ChatTemplate = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    config: RunConfig = None,
    as_json: Json = False,
) -> None:
    """Evaluate a language model, or that of a LLaVA, with lm-eval. A killed run goes on."""
    quantization(bits, quant_type, double_quant)
    from llava_tools.eval.lm import Options, evaluate

    options = Options(
        adapter=adapter,
        bits=bits,
        quant_type=quant_type,
        double_quant=double_quant,
        limit=limit,
        batch_size=batch_size,
        chat_template=apply_chat_template,
        dtype=dtype,
        device=device,
        config=config,
    )
    report = evaluate(
        model,
        tasks,
        work_dir,
        preset=preset,
        num_fewshot=num_fewshot,
        include_path=include_path,
        data_root=data_root,
        options=options,
    )
    import orjson

    from llava_tools.eval.lm_report import details, summary

    if as_json:
        sys.stdout.write(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    tables = [details(report), *([summary([report])] if report["scores"] else [])]
    sys.stdout.write("\n\n".join(tables) + "\n")


def lm_report(results: Results, plot: Picture = None, as_json: Json = False) -> None:
    """Print the results of several models as one table, and draw them."""
    import orjson

    from llava_tools.eval import lm_report as tables

    reports = [tables.read(path) for path in results]
    said = orjson.dumps(tables.compared(reports)).decode() if as_json else tables.summary(reports)
    sys.stdout.write(said + "\n")
    if plot is not None:
        tables.plot(reports, plot)
