"""RACE's rows, checked: an answer that is no letter of an option would count as a wrong one."""

from __future__ import annotations

from typing import Any


def checked(dataset: Any) -> Any:
    """Return the rows. Raises ValueError for one without four options and a letter of them."""
    for number, row in enumerate(dataset, 1):
        if len(row["options"]) != 4 or row["answer"] not in ("A", "B", "C", "D"):
            raise ValueError(
                f"row {number} of RACE has {len(row['options'])} options and the answer "
                f"{row['answer']!r}, not four and a letter from A to D"
            )
    return dataset
