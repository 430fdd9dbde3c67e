"""`llava-tools plan`: what a run will need, before a weight is downloaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option, echo

from llava_tools.cli.options import CfgOptions, ConfigArgument, Json
from llava_tools.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from llava_tools.config import Settings
    from llava_tools.train.forecast import Forecast
    from llava_tools.train.memory import Zero

log = logging.getLogger(__name__)

OPTIONS_SHOWN = 6


def plan(
    config: ConfigArgument,
    gpus: Annotated[int, Option(min=1, help="How many GPUs share the run.")] = 1,
    memory: Annotated[
        float | None,
        Option(min=0.1, help="GiB of one GPU. Default: that of --gpu, or of this machine's."),
    ] = None,
    gpu: Annotated[
        str | None,
        Option(help="h100, a100-80g, rtx4090, ...: its published rate, not this machine's."),
    ] = None,
    deepspeed: Annotated[
        str | None, Option(help="As for train. Default: deepspeed_zero2 on several GPUs.")
    ] = None,
    row_tokens: Annotated[
        float | None,
        Option(min=1, help="Mean positions of a row. Default: an image and 250 tokens."),
    ] = None,
    mfu: Annotated[
        float | None,
        Option(min=0.001, max=1, help="Share of the rate that the run is assumed to reach."),
    ] = None,
    cfg_options: CfgOptions = None,
    as_json: Json = False,
) -> None:
    """Print peak memory of a GPU by part and the time of a step, reading config.json files only.

    The largest micro-batch is taken: rows of max_length, each with an image, all text supervised.
    """
    from llava_tools.config import load_settings
    from llava_tools.train.forecast import MFU, Forecast

    settings = load_settings(config, cfg_options or [])
    chosen = deepspeed or ("deepspeed_zero2" if gpus > 1 else None)
    zero = _zero(chosen, settings, gpus)
    source, rate, room = _device(gpu, settings.dtype)
    forecast = Forecast(settings, zero, gpus)
    report = _report(forecast, memory or room, rate, mfu or MFU, row_tokens)
    report |= {"config": config, "deepspeed": chosen, "rate_of": source}
    if as_json:
        echo(json.dumps(report))
        return
    for line in _lines(report, settings):
        echo(line)


def _zero(name: str | None, settings: Settings, gpus: int) -> Zero | None:
    from llava_tools.train.memory import Zero
    from llava_tools.train.zero_config import read_deepspeed_config

    return Zero.read(read_deepspeed_config(name, settings, gpus)) if name else None


def _device(gpu: str | None, dtype: str) -> tuple[str, float | None, float | None]:
    """Return (whose rate, FLOPs a second, GiB): of a GPU by name, or of this machine."""
    import torch

    from llava_tools.model.load import choose_device
    from llava_tools.train.flops import matmul_rate
    from llava_tools.train.forecast import GPUS
    from llava_tools.train.memory import GIB

    if gpu is None:
        device = torch.device(choose_device("auto"))
        rate = matmul_rate(device, torch.bfloat16 if dtype == "bf16" else torch.float32)
        on_gpu = device.type == "cuda"
        room = torch.cuda.get_device_properties(device).total_memory / GIB if on_gpu else None
        return f"this machine's {device.type}, measured", rate, room
    if gpu.lower() not in GPUS:
        raise UserError(f"Unknown GPU '{gpu}'.", did_you_mean(gpu.lower(), set(GPUS)))
    teraflops, size = GPUS[gpu.lower()]
    # The published rates are those of bf16.
    return f"{gpu.lower()}, published", teraflops * 1e12 if dtype == "bf16" else None, size


def _report(
    forecast: Forecast,
    memory: float | None,
    rate: float | None,
    mfu: float,
    row_tokens: float | None,
) -> dict[str, Any]:
    from llava_tools.config import iterations, planned_rows
    from llava_tools.train.memory import GIB

    settings, needed = forecast.settings, forecast.memory
    counts = forecast.counts(row_tokens)
    rows = planned_rows(settings)
    steps = iterations(settings, rows, forecast.gpus)[1] if rows and not settings.packing else None
    seconds = forecast.seconds(counts, rate, mfu) if rate else None
    report: dict[str, Any] = {
        "gpus": forecast.gpus,
        "parts": {
            name: {"parameters": part.total, "trained": part.trained}
            for name, part in forecast.rehearsal.parts.items()
        },
        "memory_bytes": needed.rows() | {"total": needed.total},
        "host_bytes_of_a_gpu": needed.host,
        "flops_per_step": forecast.rehearsal.work.total(counts),
        "row_positions": counts.tokens / _rows_a_step(forecast),
        "rate": rate,
        "mfu": mfu,
        "seconds_per_step": seconds,
        "steps": steps,
        "hours": seconds * steps / 3600 if seconds and steps else None,
        "memory_limit_bytes": int(memory * GIB) if memory else None,
        "fits": None,
    }
    if memory:
        report["fits"] = needed.total <= memory * GIB
        if not report["fits"]:
            log.info("It does not fit. Looking for what does...")
        found = [] if report["fits"] else forecast.options(int(memory * GIB))
        report["options"] = [
            {"change": o.change, "bytes": o.memory.total, "host_bytes": o.memory.host}
            for o in found
        ]
    return report


def _rows_a_step(forecast: Forecast) -> int:
    settings = forecast.settings
    return settings.batch_size * settings.accumulative_counts * forecast.gpus


def _lines(report: dict[str, Any], settings: Settings) -> Iterator[str]:
    from llava_tools.train.forecast import gib

    engine = f"--deepspeed {report['deepspeed']}" if report["deepspeed"] else "plain engine"
    yield (
        f"{settings.batch_size} rows x {settings.accumulative_counts} accumulated x "
        f"{report['gpus']} GPU(s), {settings.dtype}, {engine}"
    )
    for name, part in report["parts"].items():
        trained = f"{part['trained']:,} trained" if part["trained"] else "frozen"
        yield f"  {name:<15} {part['parameters']:>14,} parameters, {trained}"
    yield f"Peak memory of a GPU, with rows of {settings.max_length} tokens (an image is one):"
    for name, size in report["memory_bytes"].items():
        yield f"  {name:<15} {gib(size):>14}"
    if report["host_bytes_of_a_gpu"]:
        yield f"  and of the host {gib(report['host_bytes_of_a_gpu']):>14} for each GPU"
    yield from _verdict(report)
    yield from _times(report)


def _verdict(report: dict[str, Any]) -> Iterator[str]:
    from llava_tools.train.forecast import gib

    if report["fits"] is None:
        return
    limit = gib(report["memory_limit_bytes"])
    yield f"It {'fits' if report['fits'] else 'does not fit'} in {limit}."
    if report["fits"]:
        return
    if not report["options"]:
        yield "No change that we know makes it fit: take more or larger GPUs, or a smaller model."
        return
    yield "What makes it fit:"
    for option in report["options"][:OPTIONS_SHOWN]:
        host = option["host_bytes"] * report["gpus"]
        beside = f" (and {gib(host)} of the host)" if host else ""
        yield f"  {gib(option['bytes']):>12}  {option['change']}{beside}"


def _times(report: dict[str, Any]) -> Iterator[str]:
    from llava_tools.train.forecast import duration

    flops = f"{report['flops_per_step'] / 1e12:,.1f} TFLOPs a step"
    rows = f"rows of {report['row_positions']:,.0f} positions on average"
    if report["seconds_per_step"] is None:
        yield f"{flops} ({rows}); published rates are for bf16, so no time is given."
        return
    yield (
        f"{duration(report['seconds_per_step'])} a step: {flops} ({rows}), on "
        f"{report['rate'] / 1e12:,.2f} TFLOPS a GPU ({report['rate_of']}), "
        f"MFU {report['mfu']:.0%} assumed (--gpu, --mfu and --row-tokens change this)"
    )
    if report["hours"]:
        yield f"{report['steps']:,} steps: {duration(report['hours'] * 3600)}"
