"""Order of prompts: equal to TRL's without routes, and what routes change."""

from collections import Counter

import numpy as np
import pytest
from trl.trainer.utils import RepeatSampler

from pivottrace_trl import PivotRoutedSampler, Route


@pytest.mark.parametrize("num_prompts", [1, 7, 12, 33])
@pytest.mark.parametrize("batch_size", [1, 3, 4])
@pytest.mark.parametrize(("mini_repeat_count", "repeat_count"), [(1, 1), (2, 3)])
@pytest.mark.parametrize(("shuffle", "seed"), [(True, 0), (True, 42), (True, None), (False, 0)])
def test_neutral_routes_yield_what_repeat_sampler_yields(
    num_prompts, batch_size, mini_repeat_count, repeat_count, shuffle, seed
):
    arguments = (range(num_prompts), mini_repeat_count, batch_size, repeat_count, shuffle, seed)
    reference, sampler = RepeatSampler(*arguments), PivotRoutedSampler(*arguments)
    assert len(sampler) == len(reference)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert list(sampler) == list(reference)


def routes_of(num_discard: int, num_weak: int, num_annotate: int) -> np.ndarray:
    return np.repeat(list(Route), [num_discard, num_weak, num_annotate]).astype(np.int8)


def test_a_discarded_prompt_is_never_yielded_and_length_is_constant():
    sampler = PivotRoutedSampler(range(40), 4, batch_size=5, seed=1, routes=routes_of(17, 13, 10))
    assert len(sampler) == 20 * 4  # 23 kept, 4 whole batches of 5
    rng = np.random.default_rng(0)
    for epoch in range(20):
        sampler.set_routes(rng.permutation(routes_of(*rng.multinomial(40, [0.4, 0.3, 0.3]))))
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert len(order) == len(sampler) == 80
        assert (sampler.routes[order] != Route.DISCARD).all()


def test_weak_prompts_come_once_an_epoch_and_annotated_ones_fill_up():
    sampler = PivotRoutedSampler(range(30), 2, batch_size=5, seed=1, routes=routes_of(0, 20, 10))
    sampler.set_routes(routes_of(18, 9, 3))
    counts = Counter(list(sampler)[::2])
    assert all(counts[row] == 1 for row in range(18, 27))
    assert sum(counts[row] for row in range(27, 30)) == 30 - 9
    assert min(counts[row] for row in range(27, 30)) == 7


def test_paid_labels_are_not_dropped_when_more_prompts_are_kept():
    sampler = PivotRoutedSampler(range(30), 1, batch_size=5, seed=1, routes=routes_of(20, 5, 5))
    sampler.set_routes(routes_of(0, 22, 8))
    order = list(sampler)
    assert len(order) == 10
    assert set(range(22, 30)) <= set(order)


def test_fewer_prompts_than_a_batch_are_repeated():
    sampler = PivotRoutedSampler(range(10), 2, batch_size=4, seed=1, routes=routes_of(9, 0, 1))
    assert list(sampler) == [9] * 8


def test_order_depends_on_seed_epoch_and_routes_alone():
    def order(epoch, visited):
        sampler = PivotRoutedSampler(range(20), 1, seed=3, routes=routes_of(5, 10, 5))
        for other in visited:
            sampler.set_epoch(other)
            list(sampler)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(2, []) == order(2, [0, 1]) == order(2, [4])
    assert order(2, []) != order(1, [])


def test_the_plan_is_frozen_when_the_iterator_is_made():
    sampler = PivotRoutedSampler(range(10), 1, seed=3, routes=routes_of(0, 5, 5))
    expected = list(sampler)
    iterator = iter(sampler)
    seen = [next(iterator)]
    sampler.set_routes(routes_of(8, 0, 2))
    assert seen + list(iterator) == expected


def test_bad_routes_are_refused():
    with pytest.raises(ValueError, match="shape"):
        PivotRoutedSampler(range(10), 1, routes=routes_of(0, 0, 9))


def test_a_pool_that_is_all_mastered_leaves_nothing_to_train_on():
    """Not an error: the trainer asks for the length, and then finds nothing in it and ends."""
    sampler = PivotRoutedSampler(range(10), 2, batch_size=3, routes=routes_of(10, 0, 0))
    assert list(sampler) == [] and len(sampler) == 6
    sampler.set_routes(routes_of(6, 0, 4))
    assert len(list(sampler)) == 6
