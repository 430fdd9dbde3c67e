"""`llava-tools convert`, and XTuner's step-by-step names for the same converters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from llava_tools.cli.options import CfgOptions

ALIASES = "XTuner's: convert pth_to_hf, phi_to_llama, xtuner_to_llava, xtuner_to_hf (see --help)."

Source = Annotated[str, Argument(metavar="SRC", help="iter_N.pth (file or folder) or a model.")]
Target = Annotated[Path, Argument(metavar="DST", help="A new folder.")]
ShardSize = Annotated[str, Option(help="Largest size of one weight file, e.g. 2GB.")]
TextModel = Annotated[str, Option(help="The LLM of the result: a Llama folder.")]
VisionModel = Annotated[str, Option(help="The vision tower: a CLIP or SigLIP folder.")]
ProjectorWeight = Annotated[str, Option(help="The projector's weights: a .safetensors file.")]
SavePath = Annotated[Path, Option(help="A new folder.")]


def convert(
    src: Source,
    dst: Target,
    to: Annotated[str, Option(help="xtuner, llava or hf.")],
    config: Annotated[
        str | None, Option(help="The config of SRC. Default: config.py beside the checkpoint.")
    ] = None,
    dtype: Annotated[str, Option(help="fp16, bf16, fp32, or keep.")] = "fp16",
    max_shard_size: ShardSize = "2GB",
    verify: Annotated[bool, Option("--verify", help="Also compare logits with SRC.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace DST.")] = False,
    cfg_options: CfgOptions = None,
) -> None:
    """Convert a checkpoint or a model to another format."""
    from llava_tools.converters.convert import convert as run

    run(
        src,
        dst,
        to=to,
        config=config,
        dtype=dtype,
        max_shard_size=max_shard_size,
        verify=verify,
        overwrite=overwrite,
        cfg_options=cfg_options or [],
    )
