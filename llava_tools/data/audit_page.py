"""The report of an audit as JSON, as lines, and as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

import numpy as np

from llava_tools.config import DatasetSpec
from llava_tools.data.audit import Finding, Report
from llava_tools.data.images import ImageProcessor, open_image
from llava_tools.data.sample import ASKED_FOR, AUDIT_REASONS, MENDED_REASONS, SKIP_REASONS
from llava_tools.data.show import ShownRow, segments
from llava_tools.errors import UserError

FAULT, LEFT_OUT = "fault", "left out"
MEANINGS = SKIP_REASONS | MENDED_REASONS | AUDIT_REASONS

_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:auto;padding:1rem;
background:Canvas;color:CanvasText;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:.3rem .5rem;border-bottom:1px solid #8886;vertical-align:top;
overflow-wrap:normal}
td:first-child,th:first-child{text-align:right}
.row{border:1px solid #8886;border-radius:.5rem;padding:.7rem;margin:1rem 0}
.tokens{white-space:pre-wrap;font-family:ui-monospace,monospace;font-size:.85rem}
.tokens span{unicode-bidi:isolate}
.trained{background:#2a94;border-bottom:2px solid #2a9}
.masked{opacity:.75}
.image{background:#48f4;border-bottom:2px solid #48f}
img{max-width:100%;min-width:6rem;image-rendering:auto;border:1px solid #8886}
.fault{color:light-dark(#b00,#f88);font-weight:600}
"""
SHOWN = 300  # characters of what a row says of itself
# Control characters but tab and newline, and those that set the direction of a text.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def to_dict(report: Report) -> dict[str, Any]:
    """Return the report as plain values for JSON."""
    return {
        "rows": report.seen,
        "faults": report.faults,
        "reasons": [
            {
                "reason": reason,
                "meaning": MEANINGS[reason],
                "fault": _kind(reason) == FAULT,
                "count": count,
                "examples": [asdict(finding) for finding in report.examples[reason]],
            }
            for reason, count in _sorted(report)
        ],
    }


def to_lines(report: Report) -> list[str]:
    """Return the report as lines of text: the total, then each reason with its first example."""
    lines = [f"{report.seen:,} rows, {report.faults:,} with a fault"]
    for reason, count in _sorted(report):
        first = report.examples[reason][:1]
        where = f" ({_place(first[0])})" if first else ""
        lines.append(f"{_kind(reason)} {count:,} x {reason}: {MEANINGS[reason]}{where}")
    return lines


def _sorted(report: Report) -> list[tuple[str, int]]:
    """Return the reasons with their counts, faults first."""
    return sorted(report.counts.items(), key=lambda item: (item[0] not in SKIP_REASONS, -item[1]))


def _place(finding: Finding) -> str:
    return _short(": ".join(part for part in (finding.origin, finding.detail) if part))


def _short(text: str) -> str:
    """Return the beginning of a text from a row; nothing in it moves a cursor or turns a line."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:SHOWN])
    return shown + ("…" if len(text) > SHOWN else "")


def to_html(
    report: Report,
    samples: Iterable[tuple[DatasetSpec, ShownRow]],
    tokenizer: Any,
    processor: ImageProcessor | None,
) -> str:
    """Return one page: reasons, examples, and rows as the model gets them. All text is escaped."""
    rows = "".join(_row(spec, row, tokenizer, processor) for spec, row in samples)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Data audit</title><style>{_STYLE}</style></head><body><h1>Data audit</h1>"
        f"<p>{report.seen:,} rows, {report.faults:,} with a fault.</p>{_summary(report)}"
        f"{_examples(report)}<h2>Rows as the model gets them</h2>"
        '<p><span class="trained">trained on</span> <span class="masked">not trained on</span> '
        f'<span class="image">image</span></p>{rows}</body></html>\n'
    )


def _summary(report: Report) -> str:
    if not report.counts:
        return "<p>Nothing was found.</p>"
    lines = "".join(
        f"<tr><td>{count:,}</td><td>{_marked(_kind(reason))}</td>"
        f"<td>{reason.replace('_', '_<wbr>')}</td><td>{escape(MEANINGS[reason])}</td></tr>"
        for reason, count in _sorted(report)
    )
    return f"<table><tr><th>Rows<th>Kind<th>Reason<th>Meaning</tr>{lines}</table>"


def _kind(reason: str) -> str:
    """Return what a reason says of its rows; what the config asks to leave out is no fault."""
    return LEFT_OUT if reason in ASKED_FOR else FAULT if reason in SKIP_REASONS else "note"


def _marked(kind: str) -> str:
    return f'<span class="fault">{kind}</span>' if kind == FAULT else kind


def _examples(report: Report) -> str:
    parts = []
    for reason, _ in _sorted(report):
        items = "".join(f"<li>{escape(_place(f))}{_id(f)}</li>" for f in report.examples[reason])
        parts.append(f"<details><summary>{escape(reason)}</summary><ul>{items}</ul></details>")
    return f"<h2>Examples</h2>{''.join(parts)}" if parts else ""


def _id(finding: Finding) -> str:
    named = finding.id not in ("", finding.origin)
    return f" [id {escape(_short(finding.id))}]" if named else ""


def _visible(text: str) -> str:
    """Write out what cannot be seen, but turns the direction of what follows it."""
    return _UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", text)


def _row(spec: DatasetSpec, row: ShownRow, tokenizer: Any, processor: ImageProcessor | None) -> str:
    tokens = "".join(
        f'<span class="{kind}">{escape(_visible(text))}</span>'
        for kind, text in segments(row.input_ids, row.labels, tokenizer)
    )
    name = f"{escape(_short(row.id))} · " if row.id != row.origin else ""
    return (
        f'<div class="row"><p>{name}{escape(row.origin)} · '
        f"{len(row.input_ids):,} tokens</p>{_images(spec, row.images, processor)}"
        f'<div class="tokens">{tokens}</div></div>'
    )


def _images(spec: DatasetSpec, paths: Sequence[str], processor: ImageProcessor | None) -> str:
    if processor is None:
        return ""
    found = []
    for path in paths:
        try:
            image = open_image(path, spec.image_folder, follow_links=spec.follow_links)
        except UserError as error:
            found.append(f"<p>{escape(_short(error.message))}</p>")
            continue
        data = base64.b64encode(_png(processor(image, spec.pad_image_to_square), processor))
        found.append(f'<img alt="{escape(path)}" src="data:image/png;base64,{data.decode()}">')
    return "".join(found)


def _png(pixels: Any, processor: ImageProcessor) -> bytes:
    """Return normalised pixels [3, H, W] as the picture they stand for."""
    from PIL import Image

    settings = processor.settings
    mean, std = (np.array(v)[:, None, None] for v in (settings.mean, settings.std))
    values = (pixels.numpy() * std + mean) / settings.rescale_factor
    picture = np.clip(np.rint(values), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()
