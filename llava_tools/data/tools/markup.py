"""Answers that were copied off a page as HTML, as Markdown (FastChat's clean step, its intent).

Only a text that begins and ends with a tag is taken for a page's: what talks about HTML stays.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

from llava_tools.data.tools.cleaning import list_key, role
from llava_tools.data.tools.files import Row
from llava_tools.errors import UserError

ANSWERS = ("output", "response", "completion")  # the keys of answers in rows without messages
_BLOCKS = "p|div|span|pre|ul|ol|table|blockquote|h[1-6]"
_PAGE = re.compile(rf"\s*<({_BLOCKS})\b[^<>]*>.*</({_BLOCKS})>\s*", re.DOTALL | re.IGNORECASE)
_LANGUAGE = re.compile(r"language-([\w+#-]+)")
_COPY = "Copy code"  # the label of a button on the pages that ShareGPT was filled from
# What its extension left in texts: "2 / 3" (which of several answers), "Copy512 chars / 80 words".
_LEFT = re.compile(r"\A\s*\d+ / \d+\n\s*(?=\S)|^Copy\d+ chars / \d+ words\s*$", re.MULTILINE)


def check_markup() -> None:
    """Raise UserError where the library that reads HTML is not installed."""
    if find_spec("markdownify") is None:
        raise UserError(
            "--html needs markdownify, which is not installed.",
            "Install it with: pip install 'llava-tools[clean]'",
        )


def without_html(row: Row) -> tuple[Row, int]:
    """Return a row with its HTML answers as Markdown, and how many there were.

    Questions stay as they were typed: who asks about a page pastes its HTML.
    """
    key, found = list_key(row), 0
    if key is None:
        pages = {name: row[name] for name in ANSWERS if _is_page(row.get(name))}
        return row | {name: to_markdown(page) for name, page in pages.items()}, len(pages)
    messages = []
    for message in row[key]:
        name = "value" if "value" in message else "content"
        text = message.get(name)
        if role(message) == "assistant" and _is_page(text):
            message, found = message | {name: to_markdown(text)}, found + 1
        messages.append(message)
    return (row | {key: messages} if found else row), found


def _is_page(text: Any) -> bool:
    return isinstance(text, str) and _PAGE.fullmatch(text) is not None


def to_markdown(page: str) -> str:
    """Return a page's HTML as Markdown: lists, tables, headings, code with its language."""
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    soup = BeautifulSoup(page, "html.parser")
    for button in soup.find_all("button"):
        button.decompose()
    for block in soup.find_all("pre"):
        _keep_code_alone(soup, block)
    converter = MarkdownConverter(
        heading_style="ATX",
        bullets="-",
        escape_asterisks=False,
        escape_underscores=False,
        code_language_callback=lambda block: block.get("title", ""),
    )
    return _LEFT.sub("", converter.convert_soup(soup)).strip()


def _keep_code_alone(soup: Any, block: Any) -> None:
    """Leave of a code block its code, and its language as the title: not the bar above it."""
    code = block.find("code") or block
    classes = " ".join(code.get("class") or ())
    named = _LANGUAGE.search(classes)
    text = code.get_text()
    bar = block.get_text().removesuffix(text).replace(_COPY, "").strip()
    clean = soup.new_tag("pre", title=named[1] if named else bar if " " not in bar else "")
    clean.string = text
    block.replace_with(clean)
