"""The planners promise: blocks tile the range exactly, in multiples of 2^n, largest first; the same in both modules."""

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudreg.errors import InputError
from cloudreg.scripts import _planner as planner

LENGTH = st.integers(1, 20000)
ROUGH = st.integers(1, 500)
LEVEL = st.integers(0, 6)


def test_the_examples():
    result = doctest.testmod(planner)
    assert result.attempted > 8 and not result.failed


def test_both_modules_have_the_same_planners(legacy):
    shared = ["opt_algo", "create_sizes", "create_starts_end", "sort_list", "sort_start_end", "score_function"]
    shared += ["prep_array", "sort_elaborations", "sort_work", "pop_left"]
    for name in shared:
        assert getattr(legacy("parastitcher"), name) is getattr(legacy("paraconverter"), name)


@given(LENGTH, ROUGH, LEVEL)
def test_standard_blocks_and_a_rest_fill_the_interval(length, w, n):
    b, r, k, iterations = planner.opt_algo(length, w, n)
    assert k * b * 2**n + r == length
    assert b >= 1 and k >= 0 and iterations >= 1
    assert 0 <= r < b * 2**n or k <= 1
    if length >= 2**n * w:
        # w estimates b.
        assert w / 2 <= b <= 1.5 * w and r < b * 2**n


@given(LENGTH, ROUGH, LEVEL)
def test_sizes_are_multiples_of_the_coarsest_voxel_but_for_the_last(length, rough, level):
    sizes = planner.create_sizes(length, rough, level)
    assert sum(sizes) == length and min(sizes) > 0
    assert all(size % 2**level == 0 for size in sizes[:-1])
    assert len(set(sizes[:-1])) <= 1 and sizes[-1] <= max(sizes[0], 2**level * rough)
    whole = planner.create_sizes(length, rough, level, norest=True)
    assert whole == (sizes[:-1] if len(sizes) > 1 and sizes[-1] != sizes[-2] else sizes)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=20), st.integers(0, 99))
def test_starts_and_ends_follow_each_other(sizes, start):
    starts, ends = planner.create_starts_end(sizes, start)
    assert starts[0] == start and ends[-1] == start + sum(sizes)
    assert [e - s for s, e in zip(starts, ends, strict=True)] == sizes
    assert starts[1:] == ends[:-1]
    closed = planner.create_starts_end(sizes, start, open_dx=False)
    assert closed == (starts, [end - 1 for end in ends])


AXIS = st.tuples(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2))


@given(AXIS, AXIS, AXIS)
def test_blocks_tile_a_volume_exactly(depth, height, width):
    sizes = [planner.create_sizes(*axis) for axis in (depth, height, width)]
    edges = [planner.create_starts_end(s) for s in sizes]
    starts, ends = [e[0] for e in edges], [e[1] for e in edges]
    order, first, last, lengths = planner.sort_start_end(*starts, *ends, *sizes)
    assert len(order) == len(first) == len(last) == len(lengths) == math.prod(len(s) for s in sizes)
    assert len({tuple(i) for i in order}) == len(order)
    seen = {}
    for n, (low, high) in enumerate(zip(first, last, strict=True)):
        assert [b - a for a, b in zip(low, high, strict=True)] == lengths[n]
        assert tuple(low) not in seen
        seen[tuple(low)] = high
    # Width, height, depth: together all voxels, and none twice (blocks of a product of intervals).
    assert sum(math.prod(n) for n in lengths.values()) == depth[0] * height[0] * width[0]
    assert {low[0] for low in first} == set(starts[2]) and {low[2] for low in first} == set(starts[0])


@given(st.dictionaries(st.integers(), st.lists(st.integers(1, 50), min_size=3, max_size=3), min_size=1))
def test_the_largest_work_comes_first(params):
    scores = planner.score_function(params)
    assert max(scores.values()) == 100
    for name, size in params.items():
        assert scores[name] == pytest.approx(100 * math.prod(size) / max(math.prod(s) for s in params.values()))
    names = planner.sort_elaborations(scores)
    work = planner.sort_work(params, names)
    assert work == params and list(work) == names
    volumes = [math.prod(size) for size in work.values()]
    assert volumes == sorted(volumes, reverse=True)
    first = names[0]
    assert planner.pop_left(work) == params[first] and first not in work and len(work) == len(params) - 1


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 81))
def test_no_partition_of_enough_parts_has_less_border(m, n, wanted):
    p, q = planner.partition(m, n, wanted)
    assert 1 <= p <= m and 1 <= q <= n
    if wanted > m * n:
        assert (p, q) == (m, n)
        return
    assert p * q >= wanted

    def cost(a, b):
        return (a - 1) * n + (b - 1) * m, a * b

    everything = [(a, b) for a in range(1, m + 1) for b in range(1, n + 1) if a * b >= wanted]
    assert cost(p, q) == min(cost(a, b) for a, b in everything)


@given(st.floats(1, 64), st.integers(1, 12), st.integers(1, 12), st.integers(1, 40))
def test_an_additional_partition_gives_all_processes_work(nprocs, rows, columns, layers):
    p, q = planner.do_additional_partition(nprocs, float(rows), float(columns), float(layers))
    assert p * q * layers >= min(2 * nprocs, rows * columns * layers)
    if layers >= 2 * nprocs:
        assert (p, q) == (1, 1)


def test_nothing_to_cut_is_said():
    with pytest.raises(InputError, match="expected a length and a block of at least 1"):
        planner.opt_algo(0, 4, 1)
