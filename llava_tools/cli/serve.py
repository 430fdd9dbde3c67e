"""`llava-tools serve`."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from llava_tools.cli.options import (
    Adapter,
    Bits,
    Device,
    DoubleQuant,
    Dtype,
    ModelArgument,
    PromptTemplate,
    QuantType,
    RunConfig,
    quantization,
)
from llava_tools.errors import UserError

Host = Annotated[str, Option(help="Address to listen on; 0.0.0.0 lets other machines in.")]
Port = Annotated[int, Option(min=0, max=65535, help="Port; 0 takes a free one.")]
Name = Annotated[str | None, Option(help="Name of the model for clients. [default: its folder's]")]
Rows = Annotated[int, Option(min=1, help="Answers in the making at once.")]
Waiting = Annotated[int, Option(min=0, help="Requests that may wait; more are turned away.")]
Longest = Annotated[int, Option(min=1, help="Longest answer, in tokens.")]
Timeout = Annotated[float, Option(min=1, help="Longest time for an answer, in seconds.")]
Bytes = Annotated[int, Option(min=1, help="Largest request, in MiB.")]
Urls = Annotated[bool, Option("--allow-urls", help="Fetch images from public addresses.")]


def serve(
    model: ModelArgument,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    name: Name = None,
    prompt_template: PromptTemplate = None,
    max_rows: Rows = 8,
    max_waiting: Waiting = 64,
    max_new_tokens: Longest = 2048,
    timeout: Timeout = 600.0,
    max_mib: Bytes = 32,
    allow_urls: Urls = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    config: RunConfig = None,
    adapter: Adapter = None,
    bits: Bits = None,
    quant_type: QuantType = "nf4",
    double_quant: DoubleQuant = True,
) -> None:
    """Serve a model over OpenAI's chat API, with images.

    Clients need the key in the environment variable LLAVA_TOOLS_API_KEY where it is set.
    """
    from pathlib import Path

    try:
        from llava_tools.serve.api import ServeSettings
        from llava_tools.serve.run import Place, key_from_environment, listen
        from llava_tools.serve.run import serve as run
    except ImportError as error:
        raise UserError(
            f"Serving needs the package '{error.name}'.", "pip install 'llava-tools[serve]'"
        ) from error
    from llava_tools.chat.start import open_assistant

    packing = quantization(bits, quant_type, double_quant)
    place = Place(host, port, max_rows, max_waiting)
    listening = listen(place)  # before time is spent on loading
    assistant = open_assistant(
        model,
        template=prompt_template,
        dtype=dtype,
        device=device,
        config=config,
        adapter=adapter,
        quantization=packing,
    )
    settings = ServeSettings(
        name=name or Path(model).resolve().name,
        api_key=key_from_environment(),
        max_bytes=max_mib * 2**20,
        max_new_tokens=max_new_tokens,
        timeout=timeout,
        allow_urls=allow_urls,
    )
    run(assistant, listening, place, settings)
