"""`llava-tools eval suite`, `eval table`, `eval compare-runs` and `eval show`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from llava_tools.cli.evaluate import (
    Answers,
    BatchSize,
    EndpointModel,
    EndpointUrl,
    ImageFolder,
    server_of,
)
from llava_tools.cli.options import (
    Adapter,
    Bits,
    Device,
    DoubleQuant,
    Dtype,
    Json,
    PromptTemplate,
    QuantType,
    RunConfig,
    StopWords,
    quantization,
)
from llava_tools.errors import UserError

DataRoot = Annotated[Path, Option(help="Folder with the benchmarks' published files.")]
Csv = Annotated[Path | None, Option("--csv", help="Also write one line a number.")]
Markdown = Annotated[Path | None, Option(help="Also write the table.")]
Radar = Annotated[Path | None, Option(help="Also draw a radar plot (PNG).")]


def suite(
    name: Annotated[str, Argument(metavar="SUITE", help="llava-table.")],
    model: Annotated[str, Argument(metavar="MODEL", help="As of eval.")],
    data_root: DataRoot,
    work_dir: Annotated[
        Path | None, Option(help="Where to write. Default: ./work_dirs/<model>/<suite>.")
    ] = None,
    batch_size: BatchSize = 16,
    stop_words: StopWords = None,
    prompt_template: PromptTemplate = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    config: RunConfig = None,
    adapter: Adapter = None,
    bits: Bits = None,
    quant_type: QuantType = "nf4",
    double_quant: DoubleQuant = True,
    endpoint: EndpointUrl = None,
    endpoint_model: EndpointModel = None,
    markdown: Markdown = None,
    csv: Csv = None,
    radar: Radar = None,
    as_json: Json = False,
) -> None:
    """Evaluate every benchmark whose file lies under --data-root, and print the table.

    Run it again after a kill: what is answered stays answered.
    """
    packing = quantization(bits, quant_type, double_quant)
    from llava_tools.eval import run, suite

    folder = work_dir or Path("work_dirs") / Path(model).resolve().name / name
    suite.find(suite.get_suite(name), data_root)  # before minutes are spent on loading the model
    server = server_of(endpoint, endpoint_model or model)
    assistant = None
    if server is None:
        assistant = run.load(
            model, prompt_template=prompt_template, dtype=dtype, device=device, config=config,
            adapter=adapter, quantization=packing,
        )  # fmt: skip

    def evaluate(
        benchmark: str, data: Path, place: Path, protocol: str, images: Any, answers: Any
    ) -> dict[str, Any]:
        return run.evaluate(
            benchmark, model, data, place, protocol=protocol, batch_size=batch_size,
            stop_words=stop_words or [], image_folder=images, answers=answers,
            assistant=assistant, server=server,
        )  # fmt: skip

    results = suite.run_suite(name, data_root, folder, evaluate)
    if os.environ.get("RANK", "0") == "0":
        _print([results], markdown, csv, radar, as_json=as_json)
    if results["failed"]:
        raise UserError(
            f"Not evaluated: {', '.join(results['failed'])}.",
            "The reasons are above; mend them and run the same command again.",
        )


def table(
    folders: Annotated[list[Path], Argument(metavar="DIR...", help="Work dirs of eval suite.")],
    markdown: Markdown = None,
    csv: Csv = None,
    radar: Radar = None,
    as_json: Json = False,
) -> None:
    """Print the results of several models as one table."""
    from llava_tools.eval import suite

    results = [suite.load_results(folder) for folder in folders]
    _print(results, markdown, csv, radar, as_json=as_json)


def _print(
    results: list[dict[str, Any]],
    markdown: Path | None,
    csv: Path | None,
    radar: Path | None,
    *,
    as_json: bool,
) -> None:
    import json

    from llava_tools.eval import sheets, suite_table

    text = suite_table.markdown(results)
    sys.stdout.write(json.dumps(results, indent=2) + "\n" if as_json else text)
    for path, content in ((markdown, text), (csv, suite_table.as_csv(results))):
        if path is not None:
            sheets.write_text(path, content)
    if radar is not None:
        suite_table.radar(results, radar)


def compare_runs(
    first: Annotated[Path, Argument(metavar="DIR", help="Work dir of an evaluation or a suite.")],
    second: Annotated[Path, Argument(metavar="DIR", help="Work dir of another one.")],
    as_json: Json = False,
) -> None:
    """Compare two models question by question, with significance: on a benchmark, or on a suite."""
    import json

    from llava_tools.eval import compare_runs, suite

    whole = all((folder / suite.RESULTS).is_file() for folder in (first, second))
    compare = compare_runs.compare_suites if whole else compare_runs.compare_runs
    found = compare(first, second)
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    for name, part in found.items() if whole else [("", found)]:
        sys.stdout.write(name + ": " * whole + "\n".join(_compared(part)) + "\n")


def _compared(found: dict[str, Any]) -> list[str]:
    if "error" in found:
        return [found["error"]]
    models = zip(found["right"], found["models"], strict=True)
    return [
        f"{found['benchmark']}, protocol {found['protocol']}, {found['questions']} questions",
        *(f"  {right} right: {model}" for right, model in models),
        f"  right by the first alone {found['only_first']}, by the second {found['only_second']}; "
        f"McNemar p = {found['p']:.3g}",
    ]


def show(
    folder: Annotated[Path, Argument(metavar="DIR", help="Work dir of an evaluation.")],
    out: Annotated[Path | None, Option(help="Where to. Default: DIR/report.html.")] = None,
    data_path: Annotated[Path | None, Option(help="Where the data are now, if moved.")] = None,
    image_folder: ImageFolder = None,
    answers: Answers = None,
    most: Annotated[int, Option(min=1, help="Show at most so many rows.")] = 500,
) -> None:
    """Write one HTML page: question, image, options, answer and verdict, with filters.

    The work dir of a suite gets a page for each benchmark and one that leads to them.
    """
    from llava_tools.eval import page, page_suite, suite

    moved = {"data_path": data_path, "image_folder": image_folder, "answers": answers}
    if not (folder / suite.RESULTS).is_file():
        written = page.write_page(folder, out, **moved, most=most)
    elif out is not None or any(moved.values()):
        raise UserError(
            f"'{folder}' holds a suite, which gets several pages.",
            "Name the folder of one benchmark in it, or leave --out and the data's options out.",
        )
    else:
        written = page_suite.write_pages(folder, most=most)
    sys.stdout.write(f"{written}\n")
