"""What a run will need before it is started: memory of a GPU, time of a step, what to change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from llava_tools.config import Settings
from llava_tools.train.flops import Counts
from llava_tools.train.memory import GIB, Memory, Zero, estimate
from llava_tools.train.rehearsal import PartSize, Rehearsal, build_empty, part_sizes, rehearse

# Dense bf16 TFLOPS (accumulated in fp32, no sparsity) and GiB, from the vendors' data sheets.
GPUS: dict[str, tuple[float, int]] = {
    "a100-40g": (312, 40), "a100-80g": (312, 80), "a800": (312, 80), "a10": (125, 24),
    "a40": (150, 48), "a6000": (155, 48), "h100": (989, 80), "h100-pcie": (756, 80),
    "h200": (989, 141), "h800": (989, 80), "h20": (148, 96), "b200": (2250, 180), "l4": (121, 24),
    "l40": (181, 48), "l40s": (362, 48), "rtx3090": (71, 24), "rtx4090": (165, 24),
    "rtx5090": (210, 32), "rtx6000ada": (364, 48), "mi250x": (383, 128), "mi300x": (1307, 192),
}  # fmt: skip
MFU = 0.4  # assumed where nothing is measured: what a good run reaches with checkpointing
TEXT = 250  # tokens of a row besides its image, where the data is not looked at
SUPERVISED = 0.5  # of them
# What makes the LLM itself smaller, by `freeze_llm`: (text, changes). Adapters stay as they are.
LORA_TEXT = "freeze_llm = True, llm_lora = dict(r=64, lora_alpha=128)"
BITS_TEXT = "llm_quantization = dict(bits=4)"
LORA: dict[str, Any] = {"freeze_llm": True, "llm_lora": {"r": 64, "lora_alpha": 128}}
BITS: dict[str, Any] = {"llm_quantization": {"bits": 4}}
SMALLER_LLM = {
    True: [(BITS_TEXT, BITS)],
    False: [(LORA_TEXT, LORA), (f"{LORA_TEXT}, {BITS_TEXT} (QLoRA)", LORA | BITS)],
}
# What a duration is told in, its seconds, and from how many seconds on it is told in the next.
DURATIONS = (("us", 1e-6, 1e-3), ("ms", 1e-3, 1.0), ("s", 1.0, 60.0))
STAGES = {
    "deepspeed_zero2": Zero(2, overlap=True),
    "deepspeed_zero3": Zero(3, overlap=True),
    "deepspeed_zero2_offload": Zero(2, offload_optimizer=True, overlap=True),
    "deepspeed_zero3_offload": Zero(3, True, True, overlap=True),
}


@dataclass(frozen=True)
class Option:
    """A change of the run, and the memory it would then need."""

    change: str
    memory: Memory


class Forecast:
    """The needs of a config on so many GPUs; `zero` None is the plain engine on one of them.

    `cuda` False: on processes of a CPU, without the workspace of GPUs.
    """

    def __init__(
        self, settings: Settings, zero: Zero | None, gpus: int, *, cuda: bool = True
    ) -> None:
        self.settings = settings
        self.zero = zero
        self.gpus = gpus
        self.cuda = cuda
        self.rehearsed: dict[tuple[Any, ...], Rehearsal] = {}
        self.parts: dict[tuple[bool, bool], dict[str, PartSize]] = {}
        self.rehearsal = self._rehearse(settings, zero)
        self.memory = self._memory(settings, zero)

    def counts(self, length: float | None = None, supervised: float | None = None) -> Counts:
        """Return the counts of a step of the whole run, given a row's mean positions.

        Without them, a row is an image and 250 tokens, half of them supervised; a packed one is
        full.
        """
        settings, patches = self.settings, self.rehearsal.work.patches
        text = min(settings.max_length - min(1, patches), TEXT)
        images = float(min(1, patches))
        if settings.packing:
            images *= (settings.max_length + patches) / (text + patches)
            text = settings.max_length
        length = text + patches if length is None else length
        supervised = text * SUPERVISED if supervised is None else supervised
        rows = settings.batch_size * settings.accumulative_counts * self.gpus
        return Counts(rows * length, rows * length**2, rows * images, rows * supervised)

    def seconds(self, counts: Counts, rate: float, mfu: float = MFU) -> float:
        """Return the seconds of a step on GPUs of the given FLOPs a second."""
        return self.rehearsal.work.total(counts) / (self.gpus * rate * mfu)

    def options(self, limit: int) -> list[Option]:
        """Return the changes that make it fit into `limit` bytes, the smaller ones first."""
        found = []
        for change, settings, zero in alternatives(self.settings, self.zero, self.gpus):
            if self._least(settings, zero) > limit:
                continue  # a rehearsal of a large model takes seconds
            memory = self._memory(settings, zero)
            if memory.total <= limit:
                found.append(Option(change, memory))
        return found

    def _least(self, settings: Settings, zero: Zero | None) -> int:
        """Return the bytes that are needed whatever the batch: of weights, optimizer, buckets."""
        key = settings.freeze_llm, settings.llm_lora is not None
        if key not in self.parts:
            self.parts[key] = part_sizes(build_empty(settings))
        bare = replace(self.rehearsal, parts=self.parts[key], peak={})
        return estimate(settings, bare, zero, self.gpus, cuda=self.cuda).total

    def _memory(self, settings: Settings, zero: Zero | None) -> Memory:
        needed = self._rehearse(settings, zero)
        return estimate(settings, needed, zero, self.gpus, cuda=self.cuda)

    def _rehearse(self, settings: Settings, zero: Zero | None) -> Rehearsal:
        """Rehearse with the settings' batch size or one; sizes between follow from a line."""
        size, whole = settings.batch_size, self.settings.batch_size
        if size not in (1, whole):
            one = self._rehearse(replace(settings, batch_size=1), zero)
            all_ = self._rehearse(replace(settings, batch_size=whole), zero)
            share = (size - 1) / (whole - 1)
            return between(one, all_, share)
        key = (
            size,
            settings.accumulative_counts > 1,
            settings.freeze_llm,
            settings.llm_lora is not None,
            settings.activation_checkpointing,
            zero is not None,
        )
        if key not in self.rehearsed:
            self.rehearsed[key] = rehearse(settings, sharded=zero is not None)
        return self.rehearsed[key]


def between(low: Rehearsal, high: Rehearsal, share: float) -> Rehearsal:
    """Return the rehearsal of a batch between two others; what lives grows by the row."""
    names = low.peak.keys() | high.peak.keys()
    peak = {}
    for name in names:
        first, last = low.peak.get(name, 0), high.peak.get(name, 0)
        peak[name] = int(first + share * (last - first))
    return replace(low, peak=peak)


def alternatives(
    settings: Settings, zero: Zero | None, gpus: int
) -> Iterator[tuple[str, Settings, Zero | None]]:
    """Yield (what to change, settings, DeepSpeed's part), the smaller changes first."""
    saving = settings
    if not settings.activation_checkpointing:
        saving = replace(settings, activation_checkpointing=True)
        yield "activation_checkpointing = True", saving, zero
    batches = {"": saving}  # as it is, and of one row
    for size in halves(settings.batch_size):
        counts = settings.batch_size * settings.accumulative_counts // size
        smaller = replace(saving, batch_size=size, accumulative_counts=counts)
        yield f"batch_size = {size}, accumulative_counts = {counts}", smaller, zero
        if size == 1:
            batches[", batch_size = 1"] = smaller
    stages = [n for n in STAGES if gpus > 1 or n.endswith("offload")]
    for name in stages:
        if zero is None or STAGES[name] != zero:
            yield f"--deepspeed {name}", saving, STAGES[name]
    for tail, base in list(batches.items())[1:]:
        yield f"--deepspeed {stages[-1]}{tail}", base, STAGES[stages[-1]]
    for text, change in SMALLER_LLM[settings.freeze_llm]:
        for tail, base in batches.items():
            changed = replace(base, **change)
            if changed != base:
                yield text + tail, changed, zero


def halves(size: int) -> Iterator[int]:
    """Yield the size halved again and again, down to 1."""
    while size > 1:
        size //= 2
        yield size


def gib(size: float) -> str:
    """Return bytes as GiB, or as MiB where that is little."""
    return f"{size / GIB:,.1f} GiB" if size > GIB / 10 else f"{size / 2**20:,.1f} MiB"


def duration(seconds: float) -> str:
    """Return a time as people say it: `85 us`, `1.4 s`, `3 min 20 s`, `2.5 h`, `3.1 days`."""
    for unit, size, upto in DURATIONS:
        # What would be rounded to the limit is told in the next unit.
        if rounded(seconds / size) * size < upto:
            return f"{rounded(seconds / size):,g} {unit}"
    if round(seconds) < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours = round(seconds / 3600, 1)
    return f"{hours:,g} h" if hours < 48 else f"{seconds / 86400:,.1f} days"


def rounded(value: float) -> float:
    """Return two digits of a small number, and a whole one from ten on."""
    return float(f"{value:.2g}") if value < 10 else round(value)
