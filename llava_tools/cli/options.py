"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

ConfigArgument = Annotated[str, Argument(help="A config file, or the name of a recipe.")]
CfgOptions = Annotated[
    list[str] | None,
    Option(metavar="KEY=VALUE", help="Change settings: lr=1e-4 datasets.0.data_path=x.json"),
]
ModelArgument = Annotated[
    str, Argument(help="A finished model: an xtuner, llava or hf folder (the format is detected).")
]
WorkDir = Annotated[Path | None, Option(help="Where to write.")]
PromptTemplate = Annotated[
    str | None, Option(help="Chat format, e.g. phi3_chat. Default: what the model folder says.")
]
Json = Annotated[bool, Option("--json", help="Print JSON for scripts.")]
Dtype = Annotated[
    str,
    Option("--dtype", "--torch-dtype", help="auto, fp16, bf16 or fp32. auto: fp32 on a CPU."),
]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:1, ...")]
