"""The pages of a suite: one for each benchmark, and one that leads to them.

llava-tools eval show SUITE_DIR
"""

from __future__ import annotations

import logging
from html import escape
from pathlib import Path
from urllib.parse import quote

from llava_tools.errors import UserError
from llava_tools.eval.page import MOST, PAGE, html, write_page
from llava_tools.eval.sheets import write_text
from llava_tools.eval.suite import get_suite, load_results
from llava_tools.eval.suite_table import note, shown

log = logging.getLogger(__name__)


def write_pages(folder: str | Path, *, most: int = MOST) -> Path:
    """Write the page of every benchmark into its folder, and `DIR/report.html` with their table.

    A benchmark without verdicts, or whose data are not there any more, has its number only; why
    stands beside it. Raises UserError for a folder that holds no suite.
    """
    folder, results = Path(folder), load_results(folder)
    lines = ["<tr><th>Benchmark<th>Result<th>What it rests on</tr>"]
    for column in get_suite(results["suite"]):
        cell, failed = (results[key].get(column.heading) for key in ("cells", "failed"))
        if cell is None and failed is None:
            continue
        heading, why = escape(column.heading), failed or note(column, cell)
        if cell is not None:
            place = Path(cell["work_dir"]).name  # beside this page, wherever the folder is now
            try:
                log.info("%s", write_page(folder / place, most=most))
                heading = f'<a href="{escape(quote(f"{place}/{PAGE}"))}">{heading}</a>'
            except UserError as error:
                why = f"{why}. No page: {error.message}"
        number = "failed" if cell is None else shown(column, cell)
        lines.append(f"<tr><td>{heading}<td>{escape(number)}<td>{escape(why)}</tr>")
    title = f"{results['suite']} · {results['model']}"
    return write_text(folder / PAGE, html(title, f"<table>{''.join(lines)}</table>"))
