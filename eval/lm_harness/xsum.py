"""XSum as OpenCompass scores it: the first 1,000 rows, no shots, ROUGE-1 of the first line."""

from __future__ import annotations

from typing import Any

ROWS = 1000


def first_rows(dataset: Any) -> Any:
    """Return the first 1,000 rows of the test split, or all where there are fewer.

    Raises ValueError for a row without a document or a summary.
    """
    chosen = dataset.select(range(min(ROWS, len(dataset))))
    for number, row in enumerate(chosen, 1):
        for name in ("document", "summary"):
            if not isinstance(row[name], str) or not row[name].strip():
                raise ValueError(f"row {number} of XSum has no {name}")
    return chosen


def rouge1(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return the F-measure of shared words between a summary and its reference, from 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer

    scores = RougeScorer(["rouge1"]).score(doc["summary"], results[0].strip())
    return {"rouge1": float(scores["rouge1"].fmeasure)}
