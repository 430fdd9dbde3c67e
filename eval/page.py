"""One evaluation as one HTML page: question, image, options, answer and verdict of every row.

llava-tools eval show DIR

The page needs nothing but itself and runs no script: its filters are radio buttons and styles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from llava_tools.errors import UserError
from llava_tools.eval.benchmark import get_benchmark
from llava_tools.eval.judge import with_choices
from llava_tools.eval.page_rows import STATES, Pictures, ShownRow, article
from llava_tools.eval.predictions import read_predictions
from llava_tools.eval.report import Report, load_report
from llava_tools.eval.shares import FILE_NAME
from llava_tools.eval.sheets import write_text
from llava_tools.eval.show import footnotes
from llava_tools.eval.sources import open_table
from llava_tools.eval.tsv import Table

MOST = 500
PAGE = "report.html"
_WORST_FIRST = ("wrong", "undecided", "missing", "right")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_page(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    data_path: str | Path | None = None,
    image_folder: str | Path | None = None,
    answers: str | Path | None = None,
    most: int = MOST,
) -> Path:
    """Write the page of a finished evaluation, `DIR/report.html` by default.

    At most `most` rows are shown, wrong and undecided ones above all, of every category alike.
    `data_path` says where the data are now, when they were moved. Raises UserError for a work dir
    or data that are not whole.
    """
    folder, report = Path(folder), load_report(folder)
    if not report["scored"]:
        raise UserError(f"'{folder}' has no verdicts: its data have no answers.", "Score it first.")
    benchmark = get_benchmark(report["benchmark"])
    run = report["run"] or {}
    data = data_path or report["data"]["path"]
    images, golds = image_folder or run.get("image_folder"), answers or run.get("answers")
    table = open_table(benchmark, data, image_folder=images, answers=golds)
    if table.md5 != report["data"]["md5"]:
        raise UserError(
            f"'{data}' is not the file that was evaluated: its md5 is {table.md5}.",
            f"Give that with md5 {report['data']['md5']} by --data-path.",
        )
    page = _page(report, _rows(folder, report, table), table, most)
    return write_text(Path(out) if out is not None else folder / PAGE, page)


def _rows(folder: Path, report: Report, table: Table) -> list[ShownRow]:
    """Score the answers once more; return them with their verdicts."""
    benchmark = get_benchmark(report["benchmark"])
    asked = str((report["run"] or {}).get("asked_as", report["protocol"]))
    questions = [benchmark.question(row, asked) for row in table.rows]
    source = folder / FILE_NAME
    found = read_predictions(source if source.is_file() else report["predictions"], table.rows)
    judged = (report.get("judge") or {}).get("choices", [])
    scored = (questions, found.answers, report["protocol"], judged)
    verdicts = with_choices(benchmark, *scored).verdicts
    return [ShownRow(q, found.answers.get(q.index), verdicts[q.index]) for q in questions]


def _chosen(rows: Sequence[ShownRow], most: int) -> list[ShownRow]:
    """Return the rows to show: every state and category in turn, of the right ones every fifth."""
    before: Counter[tuple[str, str | None]] = Counter()
    ranks = []
    for number, row in enumerate(rows):
        kind = row.state, row.question.category
        ranks.append((before[kind] * (5 if row.state == "right" else 1), number))
        before[kind] += 1
    numbers = sorted(number for _, number in sorted(ranks)[:most])
    return sorted((rows[n] for n in numbers), key=lambda row: _WORST_FIRST.index(row.state))


def _page(report: Report, rows: Sequence[ShownRow], table: Table, most: int) -> str:
    chosen, pictures = _chosen(rows, most), Pictures(table)
    categories = sorted({row.question.category for row in chosen if row.question.category})
    boxes = get_benchmark(report["benchmark"]).boxes
    drawn = (boxes(row.question, row.answer or "", report["protocol"]) if boxes else None
             for row in chosen)  # fmt: skip
    articles = "".join(
        article(row, pictures, categories, pair) for row, pair in zip(chosen, drawn, strict=True)
    )
    model = (report["run"] or {}).get("model") or Path(report["predictions"]).name
    notes = "".join(f'<p class="note">{escape(line)}</p>' for line in footnotes(report))
    which = "" if len(chosen) == len(rows) else ", of every category; --most shows more"
    count = f'<p class="note">{len(chosen)} of {len(rows)} rows{which}.</p>'
    buttons, rules = _filters(rows, chosen, categories)
    body = f"{_numbers(report)}{notes}{count}{buttons}<main>{articles}</main>"
    return html(f"{report['benchmark']} · {model}", body + pictures.definitions(), rules)


def html(title: str, body: str, rules: Sequence[str] = ()) -> str:
    """Return a page that loads nothing and runs nothing."""
    style = (files("llava_tools.eval") / "page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}{' '.join(rules)}</style></head>"
        f"<body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def _filters(
    rows: Sequence[ShownRow], chosen: Sequence[ShownRow], categories: Sequence[str]
) -> tuple[str, list[str]]:
    """Return the buttons by state and by category, and the rules that make them filter."""
    there = Counter((row.state, row.question.category) for row in chosen)
    by_state = Counter(row.state for row in chosen), Counter(row.state for row in rows)
    by_kind = Counter(row.question.category for row in chosen)
    texts = {
        "s": ["all", *(f"{state} {_of(by_state, state)}" for state in STATES)],
        "k": ["all categories", *(f"{kind} · {by_kind[kind]}" for kind in categories)],
    }
    if not categories:
        del texts["k"]
    inputs = "".join(
        f'<input type="radio" name="{name}" id="{name}{n}"{"" if n else " checked"}>'
        for name, labels in texts.items()
        for n in range(len(labels))
    )
    bars = "".join(
        f'<nav class="{ {"s": "states", "k": "kinds"}[name] }">'
        + "".join(f'<label for="{name}{n}">{escape(text)}</label>' for n, text in enumerate(labels))
        + "</nav>"
        for name, labels in texts.items()
    )
    rules = [_pressed(f"{name}{n}") for name, labels in texts.items() for n in range(len(labels))]
    classes = [(f"s{n}", state) for n, state in enumerate(STATES, 1)]
    classes += [(f"k{n}", f"c{n - 1}") for n in range(1, len(categories) + 1)]
    rules += [f"#{one}:checked ~ main article:not(.{kind}) {{ display: none }}"
              for one, kind in classes]  # fmt: skip
    empty = [
        f"#s{s}:checked ~ #k{k}:checked ~ main::before"
        for s, state in enumerate(STATES, 1)
        for k, kind in enumerate(categories, 1)
        if not there[state, kind]
    ]
    empty += [f"#s{s}:checked ~ main::before"
              for s, state in enumerate(STATES, 1) if not by_state[0][state]]  # fmt: skip
    if empty:
        rules.append(f"{','.join(empty)} {{ content: 'No such row is shown.' }}")
    return inputs + bars, rules


def _of(numbers: tuple[Mapping[str, int], Mapping[str, int]], state: str) -> str:
    """Return how many rows are shown, and of how many where that is not all."""
    shown_rows, all_rows = (counted.get(state, 0) for counted in numbers)
    return f"{shown_rows}" if shown_rows == all_rows else f"{shown_rows} of {all_rows}"


def _pressed(button: str) -> str:
    label = f"~ nav label[for={button}]"
    return (
        f"#{button}:checked {label} {{ background: var(--ink); color: var(--paper) }} "
        f"#{button}:focus-visible {label} {{ outline: 2px solid var(--good) }}"
    )


def _numbers(report: Report) -> str:
    numbers = []
    for name, heading in report["metrics"].items():
        value = report.get(name)
        if value is not None:
            numbers.append(f"{heading} {100 * value if heading.endswith('%') else value:.1f}")
    return f'<p class="numbers">{escape(" · ".join(numbers))}</p>'
