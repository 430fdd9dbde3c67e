"""Epoch orders equal a slow, literal reading of XTuner's samplers, and share the rows fairly."""

from __future__ import annotations

import math
import time
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_tools.data.samplers import epoch_order
from llava_tools.errors import UserError

LENGTHS = st.lists(st.integers(-40, 40).filter(bool), min_size=1, max_size=120)
SIZES = st.integers(1, 4)


def slow_shuffle(count: int, seed: int, epoch: int, world: int) -> list[int]:
    g = torch.Generator()
    g.manual_seed(seed + epoch)
    order = torch.randperm(count, generator=g).tolist()
    total = math.ceil(count / world) * world
    while len(order) < total:
        order += order
    return order[:total]


def slow_process(lengths: list[int], size: int, g: torch.Generator) -> list[list[int]]:
    order = torch.randperm(len(lengths), generator=g).tolist()
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    return [sorted(group, key=lambda i: lengths[i], reverse=True) for group in groups]


def slow_grouped(
    lengths: list[int], seed: int, epoch: int, per_device: int, world: int
) -> list[int]:
    """Spec 2.7, step by step, on Python lists."""
    g = torch.Generator()
    g.manual_seed(seed + epoch)
    count, total_bs = len(lengths), per_device * world
    size = max(min(count // (4 * total_bs), 50), 1) * total_bs
    images = [i for i in range(count) if lengths[i] > 0]
    texts = [i for i in range(count) if lengths[i] < 0]
    if not images or not texts:
        groups = slow_process(lengths, size, g)
    else:
        image_groups, text_groups = (
            [[members[i] for i in group] for group in slow_process(sizes, size, g)]
            for members, sizes in (
                (images, [lengths[i] for i in images]),
                (texts, [-lengths[i] for i in texts]),
            )
        )
        last = image_groups[-1] + text_groups[-1]
        full = image_groups[:-1] + text_groups[:-1]
        groups = [full[i] for i in torch.randperm(len(full), generator=g).tolist()]
        groups.append(sorted(last, key=lambda i: abs(lengths[i]), reverse=True))
    firsts = [abs(lengths[group[0]]) for group in groups]
    top = firsts.index(max(firsts))
    groups[0][0], groups[top][0] = groups[top][0], groups[0][0]
    order = [i for group in groups for i in group]
    total = math.ceil(count / world / per_device) * per_device * world
    while len(order) < total:
        order += order
    return order[:total]


@settings(max_examples=150, deadline=None)
@given(LENGTHS, st.integers(0, 5), st.integers(0, 3), SIZES, SIZES, SIZES)
def test_orders_equal_the_slow_reference(
    lengths: list[int], seed: int, epoch: int, batch: int, accumulate: int, world: int
) -> None:
    rest = (seed, epoch, batch, accumulate, world)
    shuffled = epoch_order("shuffle", lengths, *rest)
    assert shuffled.tolist() == slow_shuffle(len(lengths), seed, epoch, world)
    grouped = epoch_order("length_grouped", lengths, *rest)
    assert grouped.tolist() == slow_grouped(lengths, seed, epoch, batch * accumulate, world)


@settings(max_examples=50, deadline=None)
@given(LENGTHS, SIZES, SIZES, st.sampled_from(["shuffle", "length_grouped"]))
def test_every_row_comes_and_ranks_get_equally_many(
    lengths: list[int], batch: int, world: int, sampler: str
) -> None:
    order = epoch_order(sampler, lengths, 3, 1, batch, 1, world)
    counts = Counter(order.tolist())
    assert set(counts) == set(range(len(lengths)))
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len({len(order[rank::world]) for rank in range(world)}) == 1
    # An all-text set is sorted by its negative lengths (XTuner does so): its longest come last.
    if sampler == "length_grouped" and max(lengths) > 0:
        assert abs(lengths[order[0]]) == max(map(abs, lengths))


def test_groups_have_one_modality_and_similar_lengths() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 2000, 4000) * np.where(rng.random(4000) < 0.3, -1, 1)
    order = epoch_order("length_grouped", lengths, 0, 0, 4, 2, 2)
    batches = lengths[order].reshape(-1, 16)
    mixed = (np.sign(batches) != np.sign(batches[:, :1])).any(axis=1)
    assert mixed.sum() <= 50 + 2  # the last group of 50 batches, and the swapped first row
    spread = np.ptp(np.abs(batches), axis=1)
    shuffled = np.abs(lengths[epoch_order("shuffle", lengths, 0, 0, 4, 2, 2)]).reshape(-1, 16)
    assert np.median(spread) < 0.1 * np.median(np.ptp(shuffled, axis=1))


@pytest.mark.parametrize("sampler", ["shuffle", "length_grouped"])
def test_the_order_depends_on_seed_and_epoch_alone(sampler: str) -> None:
    lengths = list(range(1, 60))

    def order(seed: int, epoch: int) -> list[int]:
        torch.manual_seed(seed * 7 + epoch)  # global generators must not matter
        np.random.seed(epoch)
        return epoch_order(sampler, lengths, seed, epoch, 2, 1, 2).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 1) == order(1, 0)  # XTuner seeds with their sum
    assert order(0, 0) != order(0, 1)


@pytest.mark.parametrize("sampler", ["shuffle", "length_grouped"])
def test_the_global_generator_is_left_alone(sampler: str) -> None:
    before = torch.get_rng_state()
    epoch_order(sampler, [3, -2, 1], 0, 0, 1, 1, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_large_set_is_ordered_at_once() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 2000, 665_298) * np.where(rng.random(665_298) < 0.06, -1, 1)
    begin = time.process_time()
    order = epoch_order("length_grouped", lengths, 0, 0, 16, 1, 8)
    assert time.process_time() - begin < 3
    assert len(np.unique(order)) == 665_298


def test_what_makes_no_order() -> None:
    with pytest.raises(UserError, match="'lenght_grouped'.\nDid you mean 'length_grouped'"):
        epoch_order("lenght_grouped", [1], 0, 0, 1, 1, 1)
    for lengths in ([], [3, 0]):
        with pytest.raises(ValueError, match="needs rows"):
            epoch_order("shuffle", lengths, 0, 0, 1, 1, 1)
