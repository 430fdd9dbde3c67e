"""The schedule's landmarks, and its agreement with the published recipes' one."""

from __future__ import annotations

import math

import pytest

from llava_tools.config import DatasetSpec, Settings
from llava_tools.train.optim import learning_rate

SETTINGS = Settings("llm", "plain", (DatasetSpec("x.json"),), lr=1e-3, warmup_ratio=0.03)


def test_starts_at_a_hundred_thousandth_peaks_after_the_warmup_and_ends_near_zero() -> None:
    total, warmup = 2181, 65
    assert learning_rate(0, total, SETTINGS) == pytest.approx(1e-8)
    assert learning_rate(warmup - 1, total, SETTINGS) == pytest.approx(1e-3)
    assert learning_rate(warmup, total, SETTINGS) == pytest.approx(1e-3)
    assert learning_rate(total - 1, total, SETTINGS) < 1e-8


def test_warmup_is_linear_and_decay_is_a_cosine() -> None:
    total, warmup = 1000, 30
    rates = [learning_rate(step, total, SETTINGS) for step in range(total)]
    increments = {round(rates[i + 1] - rates[i], 12) for i in range(warmup - 1)}
    assert len(increments) == 1
    for step in range(warmup, total):
        share = (step - warmup) / (total - warmup)
        assert rates[step] == pytest.approx(1e-3 * (1 + math.cos(math.pi * share)) / 2)


def test_a_run_too_short_for_a_warmup_starts_at_the_peak() -> None:
    assert learning_rate(0, 10, SETTINGS) == pytest.approx(1e-3)
