"""Pictures of a selection: how the scores lie, how they go with length, where the clusters are."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

CHOSEN, OTHER, GREY = "#d1495b", "#2a6fbb", "#555555"
SIZE = (8.0, 4.6)
BINS = 60
SHOWN = 20_000  # points; more of them would be a blot, and slow to draw
Values = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


def histogram(values: Values, chosen: Mask, name: str, limit: float | None = None) -> bytes:
    """Return a PNG of how many rows have which score, the chosen ones in colour.

    The highest and lowest 0.5 % share the outermost bars when they would flatten the rest.
    """
    finite = np.isfinite(values)
    low, high = _range(values[finite])

    def draw(panel: Any) -> None:
        bins = np.linspace(low, high, BINS + 1)
        both = [np.clip(values[finite & mask], low, high) for mask in (chosen, ~chosen)]
        names = [f"chosen ({len(both[0]):,})", f"others ({len(both[1]):,})"]
        # Filled as one shape: between bars, seams would show.
        panel.hist(
            both, bins, stacked=True, color=[CHOSEN, OTHER], label=names, histtype="stepfilled"
        )
        if limit is not None and low < limit < high:
            panel.axvline(limit, color=GREY, linewidth=1, linestyle="--", label=f"limit {limit:g}")
        panel.set_xlabel(name, color=GREY)
        panel.set_ylabel("rows", color=GREY)
        panel.legend(frameon=False, labelcolor=GREY)

    return _picture(draw)


def scatter(values: Values, lengths: Values, chosen: Mask, name: str) -> bytes:
    """Return a PNG of the scores against the length of the answers, which is drawn by powers."""
    finite = np.isfinite(values) & np.isfinite(lengths)
    low, high = _range(values[finite])

    def draw(panel: Any) -> None:
        for mask, size, colour, label in (
            (~chosen, 9, OTHER, "others"),
            (chosen, 20, CHOSEN, "chosen"),
        ):
            places = _some(np.flatnonzero(finite & mask))
            heights = np.clip(values[places], low, high)
            panel.scatter(
                lengths[places], heights, s=size, alpha=0.7, color=colour, label=label, linewidths=0
            )
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.set_xlabel("tokens of the answer", color=GREY)
        panel.set_ylabel(name, color=GREY)
        panel.legend(frameon=False, labelcolor=GREY, markerscale=2)

    return _picture(draw)


def cluster_map(vectors: Any, labels: Values, chosen: Mask) -> bytes:
    """Return a PNG of the embeddings [N, D] in the plane of their two main axes (PCA).

    A colour is a cluster (20 colours take turns), a ring is a chosen row.
    """
    from sklearn.decomposition import PCA

    axes = min(2, *vectors.shape)
    points = np.zeros((len(vectors), 2))
    told = 0.0
    if len(vectors) > 1 and float(np.ptp(vectors, axis=0).max()) > 0:
        model = PCA(axes, random_state=0)
        points[:, :axes] = model.fit_transform(vectors)
        told = float(model.explained_variance_ratio_.sum())

    def draw(panel: Any) -> None:
        shown = _some(np.arange(len(points)))
        colours = labels[shown] % 20
        panel.scatter(*points[shown].T, s=11, c=colours, cmap="tab20", vmin=0, vmax=19, alpha=0.8)
        rings = _some(np.flatnonzero(chosen))
        panel.scatter(
            *points[rings].T, s=42, facecolors="none", edgecolors="black", linewidths=0.9,
            label=f"chosen ({int(chosen.sum()):,})",
        )  # fmt: skip
        panel.set_xlabel(f"first axis; both tell {told:.0%} of the variance", color=GREY)
        panel.set_ylabel("second axis", color=GREY)
        panel.legend(frameon=False, labelcolor=GREY)

    return _picture(draw, height=6.4)


def _range(values: Values) -> tuple[float, float]:
    """Return the ends of an axis: all values, or all but the outermost if these lie far out."""
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    inner = np.percentile(values, [0.5, 99.5])
    if high - low > 4 * (inner[1] - inner[0]) > 0:
        low, high = float(inner[0]), float(inner[1])
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _some(places: Any) -> Any:
    """Return at most SHOWN of the places, evenly spread."""
    return places[:: -(-len(places) // SHOWN) or 1]


def _picture(draw: Callable[[Any], None], height: float = SIZE[1]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIZE[0], height), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    draw(panel)
    panel.grid(color="#dddddd", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(colors=GREY)
    panel.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, dpi=120, format="png")
    return file.getvalue()


def masked(places: Sequence[int], rows: int) -> Mask:
    """Return which of the rows are among some places."""
    mask = np.zeros(rows, dtype=bool)
    mask[list(places)] = True
    return mask
