"""Peak memory of a GPU by what it is for: weights, gradients, optimizer, activations, logits.

Activations and logits come from the rehearsed step (`rehearsal`); the rest is arithmetic on the
parameters. Bytes of a parameter, e being 2 with bf16 and 4 with fp32, shared out over n GPUs (/n):

    engine     frozen  trained  gradients         master + Adam   and
    plain      e       4        4                 8
    stage 0    e       e        4 + e             12
    stage 1    e       e        4 + e             12/n
    stage 2    e       e        4/n, twice in     12/n            buckets of `reduce_bucket_size`
                                the update
    stage 3    e/n     e/n      4/n               12/n            gathered weights, one bucket

A quantised weight takes bits / 8 and its scales: 4.13 bits a value in 4 bits with double
quantisation, 4.5 without, 8 and one scale a row in 8 bits; a layer of it is unpacked at a time.
Offloaded states lie in the host's memory. Workspace is the CUDA context and the libraries' (1 GiB),
and a twentieth of activations and logits for what the allocator cannot use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from llava_tools.config import Settings
from llava_tools.config.settings import QuantizationSpec
from llava_tools.errors import UserError, first_line
from llava_tools.train.live import ACTIVATIONS, GRADIENTS, LOGITS
from llava_tools.train.rehearsal import PartSize, Rehearsal

GIB = 2**30
CUDA_WORKSPACE = GIB
UNUSABLE = 0.05
ADAM, MASTER = 8, 4  # bytes a parameter
# bitsandbytes: two bytes and an fp32 scale for each of two blocks of 256 values, without the small
# tensors that stay fp32; paged states count as the GPU's, from where they go when it is full.
ADAM_8BIT = 2 + 2 * 4 / 256
OFFLOADS = {"offload_optimizer": "offload_optimizer", "offload_weights": "offload_param"}
QUANTISED_BYTES = {(4, True): 0.5162, (4, False): 0.5625, (8, True): 1.001, (8, False): 1.001}


@dataclass(frozen=True)
class Zero:
    """What of a DeepSpeed configuration decides its memory; DeepSpeed's defaults."""

    stage: int = 0
    offload_optimizer: bool = False
    offload_weights: bool = False
    bucket: int = 500_000_000
    overlap: bool = False
    gathered: int = 1_000_000_000  # parameters of stage 3 that may be whole at a time

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Zero:
        """Take them from a DeepSpeed configuration without "auto".

        Raises UserError for values of a wrong kind.
        """
        try:
            return cls._read(config.get("zero_optimization", {}))
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"A value under zero_optimization is of a wrong kind: {first_line(error)}.",
                "Mend the JSON file of --deepspeed.",
            ) from error

    @classmethod
    def _read(cls, zero: Mapping[str, Any]) -> Zero:
        on_host = {
            name: (zero.get(key) or {}).get("device", "none") != "none"
            for name, key in OFFLOADS.items()
        }
        stage = int(zero.get("stage", 0))
        return cls(
            stage=stage,
            **on_host,
            bucket=int(zero.get("reduce_bucket_size", cls.bucket)),
            overlap=bool(zero.get("overlap_comm", stage == 3)),
            gathered=int(zero.get("stage3_max_live_parameters", cls.gathered)),
        )


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU at the peak, and of the host for one GPU."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    workspace: int
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes of the GPU."""
        return sum(self.rows().values())

    def rows(self) -> dict[str, int]:
        """Return the bytes of the GPU by part."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "host"}


def estimate(
    settings: Settings, rehearsal: Rehearsal, zero: Zero | None, gpus: int, *, cuda: bool = True
) -> Memory:
    """Return the peak of the larger of two moments: within the backward pass, and the update.

    `zero` None is the plain engine; `cuda` False leaves out the workspace of GPUs.
    """
    seen, unpacked = rehearsal.peak, unpacked_bytes(settings, rehearsal.parts)
    activations = seen.get(ACTIVATIONS, 0) + unpacked
    logits = seen.get(LOGITS, 0)
    trained = sum(part.trained for part in rehearsal.parts.values())
    weights = weight_bytes(settings, rehearsal.parts, plain=zero is None)
    spare = int(CUDA_WORKSPACE + UNUSABLE * (activations + logits)) if cuda else 0
    if zero is None:
        gradients = seen.get(GRADIENTS, 0)
        states = int((ADAM_8BIT if "8bit" in settings.optimizer else ADAM) * trained)
        backward = Memory(weights, gradients, states, activations, logits, spare)
        full = 4 * trained
        update = Memory(weights, full, states, 0, 0, CUDA_WORKSPACE if cuda else 0)
        return max(backward, update, key=lambda memory: memory.total)
    # Gradients on their way: the rehearsal has them while it hands them on.
    activations += seen.get(GRADIENTS, 0)
    return _sharded(settings, rehearsal, zero, gpus, weights, trained, (activations, logits, spare))


def _sharded(
    settings: Settings,
    rehearsal: Rehearsal,
    zero: Zero,
    gpus: int,
    weights: int,
    trained: int,
    alive: tuple[int, int, int],
) -> Memory:
    size = 2 if settings.dtype == "bf16" else 4
    gradients = trained * (MASTER + size)
    states = trained * (MASTER + ADAM)
    if zero.stage >= 1:
        states = -(-states // gpus)
    if zero.stage >= 2:
        gradients = -(-trained * MASTER // gpus)
    host = 0
    if zero.stage == 3:
        share, weights = -(-weights // gpus), 0
        host += share if zero.offload_weights else 0
        weights += 0 if zero.offload_weights else share
        every = sum(part.total for part in rehearsal.parts.values())
        weights += min(every, zero.gathered) * size
    if zero.offload_optimizer:
        host += states + gradients
        states = gradients = 0
    activations, logits, spare = alive
    spare += _buckets(zero, size)
    backward = Memory(weights, gradients, states, activations, logits, spare, host)
    twice = 2 * gradients if zero.stage == 2 else gradients
    update = Memory(weights, twice, states, 0, 0, min(spare, CUDA_WORKSPACE), host)
    return max(backward, update, key=lambda memory: memory.total)


def _buckets(zero: Zero, size: int) -> int:
    """Return the bytes that gradients are collected in before they are sent."""
    if zero.stage == 0 or (zero.stage == 1 and size == 2):
        return 0
    return zero.bucket * size * (2 if zero.overlap and zero.stage < 3 else 1)


def weight_bytes(settings: Settings, parts: Mapping[str, PartSize], *, plain: bool) -> int:
    """Return the bytes of all weights on one GPU that shares out none."""
    size = 2 if settings.dtype == "bf16" else 4
    total = 0.0
    for name, part in parts.items():
        total += part.trained * (4 if plain else size)
        frozen = part.total - part.trained
        packed = part.linear if name == "llm" and settings.llm_quantization is not None else 0
        total += (frozen - packed) * size + packed * packed_bytes(settings)
    return int(total)


def packed_bytes(settings: Settings) -> float:
    """Return the bytes of a value of a quantised weight."""
    spec = QuantizationSpec(**(settings.llm_quantization or {}))
    return QUANTISED_BYTES[spec.bits, spec.double_quant]


def unpacked_bytes(settings: Settings, parts: Mapping[str, PartSize]) -> int:
    """Return the bytes of the largest quantised layer while it is computed with."""
    if settings.llm_quantization is None:
        return 0
    return parts["llm"].largest * (2 if settings.dtype == "bf16" else 4)
