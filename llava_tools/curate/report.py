"""What was chosen, to look at: a folder of pictures, and one page that needs nothing else."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from llava_tools.curate.cluster import Clustering, ClusterRules
from llava_tools.curate.pictures import cluster_map, histogram, masked, scatter
from llava_tools.curate.rows import Example, read_examples
from llava_tools.curate.scores import Scores
from llava_tools.curate.selection import ALL_REASONS, Rules, Selection
from llava_tools.errors import UserError
from llava_tools.whole_files import write_whole

PAGE = "index.html"
HISTOGRAM, SCATTER, MAP = "scores.png", "length.png", "clusters.png"
TITLES = {
    HISTOGRAM: "How the scores lie",
    SCATTER: "Score and length",
    MAP: "Clusters: a colour each (20 take turns), a ring around what was chosen",
}
WRITTEN = {PAGE, *TITLES}
EXAMPLES = 8  # of the chosen rows, and of each reason
CUT = 700  # characters of a text
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:auto;padding:1rem;
background:Canvas;color:CanvasText;overflow-wrap:anywhere}
table{border-collapse:collapse}
td,th{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #8886;vertical-align:top;
overflow-wrap:break-word}
td:first-child{text-align:right}
img{max-width:100%;background:#fff;border-radius:.5rem;margin:.5rem 0}
.row{border:1px solid #8886;border-radius:.5rem;padding:.6rem .8rem;margin:.8rem 0}
.row p{margin:.2rem 0;white-space:pre-wrap;unicode-bidi:isolate}
.asked{opacity:.75}
.of{font-weight:600}
"""


def check_report(folder: Path | None) -> None:
    """Refuse a folder that holds other things than a report. Raises UserError."""
    if folder is None or not folder.exists():
        return
    foreign = [] if folder.is_dir() else [folder.name]
    foreign = foreign or sorted({path.name for path in folder.iterdir()} - WRITTEN)
    if foreign:
        raise UserError(
            f"The report's folder '{folder}' holds other things: {foreign[0]}.",
            "Name a new folder.",
        )


def selection_report(
    folder: Path,
    data: Path,
    scores: Scores,
    made: Selection,
    rules: Rules,
    format: str = "auto",  # noqa: A002
) -> None:
    """Write the report of a selection by score: histogram, score against length, examples."""
    chosen = masked(made.chosen, made.rows)
    name = made.by.replace("_", "-")
    limit = rules.max_ifd if name.startswith("ifd-") and name != "ifd-image" else None
    pictures = {HISTOGRAM: histogram(made.values, chosen, name, limit)}
    lengths = scores.column("tokens", made.rows)
    if np.isfinite(lengths).any():
        pictures[SCATTER] = scatter(made.values, lengths, chosen, name)
    order = sorted(made.chosen, key=lambda i: (made.values[i], i), reverse=not rules.ascending)
    counts = [f"{made.rows:,} rows", f"{made.kept:,} kept", f"{len(made.chosen):,} chosen"]
    told = {key: value for key, value in asdict(rules).items() if value not in (None, False)}
    hits = {phrase: count for phrase, count in made.hits.most_common() if count}
    values = {i: f"{name} {made.values[i]:.4f}" for i in range(made.rows)}
    shown = _examples(order, made.dropped)
    page = _Page(counts, told, made.reasons, pictures, shown, values, "the best first", hits)
    _write(folder, data, page, format)


def cluster_report(
    folder: Path,
    data: Path,
    scores: Scores,
    made: Clustering,
    rules: ClusterRules,
    format: str = "auto",  # noqa: A002
) -> None:
    """Write the report of picks from clusters: their map, the perplexities, examples."""
    ppl = scores.column("ppl", made.rows)
    chosen = masked(made.chosen, made.rows)
    pictures = {HISTOGRAM: histogram(np.log(ppl), chosen, "logarithm of the prompt's perplexity")}
    if made.places:
        labels = np.array([made.clusters[place] for place in made.places])
        pictures[MAP] = cluster_map(made.vectors, labels, chosen[made.places])
    counts = [f"{made.rows:,} rows", f"{made.count:,} clusters", f"{len(made.chosen):,} chosen"]
    values = {i: f"cluster {name}, perplexity {ppl[i]:.1f}" for i, name in made.clusters.items()}
    shown = _examples(made.chosen[:: len(made.chosen) // EXAMPLES or 1], made.dropped)
    page = _Page(counts, asdict(rules), made.reasons, pictures, shown, values)
    _write(folder, data, page, format)


def _examples(chosen: Sequence[int], dropped: Mapping[int, str]) -> dict[str, list[int]]:
    """Return the rows to show under each title: chosen ones, then some of each reason."""
    shown = {"chosen": list(chosen[:EXAMPLES])}
    for reason, _ in Counter(dropped.values()).most_common():
        places = sorted(place for place, why in dropped.items() if why == reason)
        step = max(1, len(places) // EXAMPLES)
        shown[reason] = places[::step][:EXAMPLES]
    return shown


@dataclass(frozen=True)
class _Page:
    """What a report tells: numbers, rules, reasons, phrases, pictures, and rows under titles."""

    counts: Sequence[str]
    rules: Mapping[str, Any]
    reasons: Counter[str]
    pictures: Mapping[str, bytes]
    shown: Mapping[str, Sequence[int]]
    values: Mapping[int, str]  # what is told of a row
    order: str = "cluster by cluster"
    hits: Mapping[str, int] = field(default_factory=dict)


def _write(folder: Path, data: Path, page: _Page, format: str) -> None:  # noqa: A002
    wanted = {place for places in page.shown.values() for place in places}
    rows = {r.place: r.example for r in read_examples(data, format) if r.place in wanted}
    images = "".join(_image(name, png) for name, png in page.pictures.items())
    sections = "".join(
        f"<h3>{escape(title)}</h3><p>{escape(ALL_REASONS.get(title, page.order))}</p>"
        + "".join(_row(place, rows[place], page.values.get(place, "")) for place in places)
        for title, places in page.shown.items()
        if places
    )
    told = ", ".join(f"{key} = {value}" for key, value in page.rules.items())
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Selection</title><style>{_STYLE}</style></head><body><h1>Selection</h1>"
        f"<p>{escape(_shown(str(data)))}: {', '.join(page.counts)}.</p>"
        f"<p>{escape(_shown(told))}</p>"
        f"{_table(page.reasons.most_common(), 'Why rows were left out')}"
        f"{_table(page.hits.items(), 'Rows that say a phrase')}{images}"
        f"<h2>Examples</h2>{sections}</body></html>\n"
    )
    for name, png in page.pictures.items():
        write_whole(folder / name, png)
    write_whole(folder / PAGE, html.encode("utf-8", "replace"))


def _image(name: str, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    title = TITLES[name]
    return f'<h2>{title}</h2><p><img alt="{title}" src="data:image/png;base64,{data}"></p>'


def _table(counts: Iterable[tuple[str, int]], title: str) -> str:
    lines = "".join(
        f"<tr><td>{count:,}</td><td>{escape(_shown(name))}</td>"
        f"<td>{escape(ALL_REASONS.get(name, ''))}</td></tr>"
        for name, count in counts
    )
    return f"<h2>{title}</h2><table>{lines}</table>" if lines else ""


def _row(place: int, example: Example | str, value: str) -> str:
    head = f'<p class="of">row {place + 1:,}{f" · {escape(value)}" if value else ""}</p>'
    if isinstance(example, str):
        return f'<div class="row">{head}<p>{escape(example)}</p></div>'
    turns = "".join(
        f'<p class="{"answer" if turn.role == "assistant" else "asked"}">'
        f"{escape(_shown(turn.text))}</p>"
        for turn in example.turns
    )
    images = "".join(f"<p>{escape(_shown(path))}</p>" for path in example.images)
    return f'<div class="row">{head}{images}{turns}</div>'


def _shown(text: str) -> str:
    """Return the beginning of a text; nothing in it can turn the direction of the page."""
    seen = "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
    return seen[:CUT] + ("…" if len(seen) > CUT else "")
