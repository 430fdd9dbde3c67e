"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

ConfigArgument = Annotated[
    str, Argument(metavar="CONFIG", help="A config file, or the name of a recipe.")
]
CfgOptions = Annotated[
    list[str] | None,
    Option(metavar="KEY=VALUE", help="Change settings: lr=1e-4 datasets.0.data_path=x.json"),
]
ModelArgument = Annotated[
    str,
    Argument(
        metavar="MODEL",
        help="An xtuner, llava or hf folder, or a checkpoint (the format is detected).",
    ),
]
PromptTemplate = Annotated[
    str | None, Option(help="Chat format, e.g. phi3_chat. Default: what the model folder says.")
]
Json = Annotated[bool, Option("--json", help="Print JSON for scripts.")]
Dtype = Annotated[
    str,
    Option("--dtype", "--torch-dtype", help="auto, fp16, bf16 or fp32. auto: fp32 on a CPU."),
]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:1, ...")]
RunConfig = Annotated[str | None, Option(help="Config of the run, for a checkpoint without one.")]
StopWords = Annotated[
    list[str] | None, Option(metavar="TEXT", help="More texts that end an answer.")
]
# The model in parts, as XTuner's chat and mmbench take it.
Llava = Annotated[
    str | None, Option(help="Folder of projector (and tower), when MODEL is the LLM alone.")
]
Tower = Annotated[str | None, Option(help="The tower, if it is not in --llava.")]
Layer = Annotated[int | None, Option(help="Layer of the tower. Default: the model's, or -2.")]
