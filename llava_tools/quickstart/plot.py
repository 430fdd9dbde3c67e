"""The loss curves of the training runs as one picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

Curve = Sequence[tuple[int, float]]  # (step, loss)

TITLES = {
    "text_sft": "1. text fine-tuning",
    "pretrain": "2. pretraining on captions",
    "finetune": "3. fine-tuning on questions",
}
REACH = 2  # the bold line is the mean of a log line and so many on both sides
BLUE, GREY = "#2a6fbb", "#555555"


def read_losses(log: Path) -> list[tuple[int, float]]:
    """Return (step, loss) of each line of a run's log.jsonl."""
    records = [json.loads(line) for line in log.read_text().splitlines()]
    return [(int(record["step"]), float(record["loss"])) for record in records]


def rolling_mean(values: Sequence[float], reach: int) -> list[float]:
    """Return the mean of each value and its `reach` neighbours on both sides, where they exist."""
    parts = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def plot_losses(curves: Mapping[str, Curve], path: Path) -> None:
    """Draw each run's loss over its steps, on one logarithmic scale, into a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for panel, (name, curve) in zip(panels, curves.items(), strict=True):
        steps, losses = [step for step, _ in curve], [loss for _, loss in curve]
        panel.plot(steps, losses, color=BLUE, alpha=0.3, linewidth=1)
        panel.plot(steps, rolling_mean(losses, REACH), color=BLUE, linewidth=2)
        panel.set_title(TITLES[name], loc="left", fontsize=11)
        panel.set_xlabel("step", color=GREY)
        panel.set_yscale("log")
        panel.set_xlim(left=0)
        panel.grid(axis="y", color="#dddddd", linewidth=0.8)
        panel.tick_params(colors=GREY)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("loss per trained token", color=GREY)
    figure.savefig(path, dpi=120)
