"""Pruning's thresholds: rates and the rule by hand, the random control by enumeration, the bootstrap on known cases."""

from itertools import combinations

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cad.config import PruneSettings
from cad.errors import UserError
from cad.prior.prune import decide
from cad.seeding import generator
from cad.toyworld.thresholds import (
    Thresholds,
    at_ends,
    choose,
    count,
    interval,
    keep,
    measure,
    random_rates,
    rates,
    resample,
)

# subject, bad pixels, CLIP, good
ROWS = [
    ("a", 2, 0.9, True),
    ("a", 4, 0.8, True),
    ("a", 9, 0.9, False),
    ("b", 3, 0.7, True),
    ("b", 3, 0.2, False),
    ("b", 9, 0.9, True),
]


def poses(rows: list[tuple[str, int, float, bool]]) -> pandas.DataFrame:
    return pandas.DataFrame(rows, columns=["subject", "bad_pixels_max", "clip_min", "good"])


@given(
    bad=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    similar=st.lists(st.floats(-1, 1), min_size=4, max_size=4),
    most=st.integers(0, 30),
    least=st.floats(-1, 1),
)
def test_a_table_is_pruned_as_the_main_job_prunes(
    bad: list[int], similar: list[float], most: int, least: float
) -> None:
    settings = PruneSettings(
        enabled=True, white_threshold=240, dilation_px=2, max_bad_pixels=most, min_clip_similarity=least, batch=1
    )
    scores = np.array(bad), np.array(similar[: len(bad)])
    decision = decide(*scores, settings)
    table = poses([("a", decision.bad_pixels_max, decision.clip_min, True)])
    assert bool(keep(table, Thresholds(most, least))[0]) == decision.kept


def test_a_check_that_is_left_out_rejects_nothing() -> None:
    assert keep(poses(ROWS), Thresholds(4, None)).tolist() == [True, True, False, True, True, False]
    assert keep(poses(ROWS), Thresholds(None, 0.8)).tolist() == [True, True, True, False, False, True]
    assert keep(poses(ROWS), Thresholds(None, None)).all()


def test_rates_by_hand() -> None:
    """At most 4 bad pixels and at least 0.7 keeps rows 0, 1 and 3, which are good; one of the four good is lost."""
    table = poses(ROWS)
    counts = count(table["subject"].tolist(), keep(table, Thresholds(4, 0.7)), table["good"].to_numpy())
    assert counts.tolist() == [[3, 2, 2, 2], [3, 1, 2, 1]]
    assert rates(counts.sum(0)) == pytest.approx((3 / 6, 1.0, 3 / 4))
    geometry = count(table["subject"].tolist(), keep(table, Thresholds(4, None)), table["good"].to_numpy())
    assert rates(geometry.sum(0)) == pytest.approx((4 / 6, 3 / 4, 3 / 4))


def test_rates_without_anything_kept_or_good_are_undefined() -> None:
    assert np.isnan(rates(np.array([4, 0, 2, 0])).precision)
    assert np.isnan(rates(np.array([4, 2, 0, 0])).recall)
    assert np.isnan(random_rates(np.array([4, 0, 2, 0])).precision)


def test_the_random_control_is_the_mean_of_all_choices() -> None:
    """Every choice of 3 of the 6 poses, counted out: precision is the base rate 4/6 and recall the share 3/6."""
    table = poses(ROWS)
    good = table["good"].to_numpy()
    every = []
    for chosen in combinations(range(6), 3):
        kept = np.isin(np.arange(6), chosen)
        every.append(rates(count(table["subject"].tolist(), kept, good).sum(0)))
    expected = np.mean(np.array(every), axis=0)
    counts = count(table["subject"].tolist(), keep(table, Thresholds(4, 0.7)), good).sum(0)
    assert random_rates(counts) == pytest.approx(tuple(expected))
    assert random_rates(counts) == pytest.approx((1 / 2, 4 / 6, 1 / 2))


def test_the_rule_takes_the_most_precise_pair_that_keeps_enough() -> None:
    """(3, 0.7) keeps two of four good poses, (4, 0.7) three, both precisely; (9, 0.7) keeps all four and a bad one."""
    table = poses(ROWS)
    assert choose(table, [2, 3, 4, 9], [0.7], min_recall=0.5) == (4, 0.7)  # equally precise: more recall
    assert choose(table, [2, 3], [0.7], min_recall=0.5) == (3, 0.7)
    assert choose(table, [2, 3, 4, 9], [0.7], min_recall=0.8) == (9, 0.7)
    assert choose(table, [4, 9], [None], min_recall=0.5) == (4, None)  # 3 of 4 precise, against 4 of 6


def test_the_rule_prefers_the_looser_of_two_pairs_that_keep_the_same() -> None:
    table = poses(ROWS)
    assert choose(table, [4, 5, 8], [0.3, 0.5, 0.7], min_recall=0.5) == (8, 0.3)
    assert choose(table, [8, 5, 4], [0.7, 0.5, 0.3], min_recall=0.5) == (8, 0.3)  # whatever the order


@pytest.mark.parametrize("rows", [ROWS, [("a", 1, 0.9, False)]])
def test_no_pair_that_keeps_enough_is_a_users_fault(rows: list[tuple[str, int, float, bool]]) -> None:
    with pytest.raises(UserError, match=r"pruning\.min_recall: no pair of thresholds keeps 100% of the [04] good"):
        choose(poses(rows), [2, 4], [0.7], min_recall=1.0)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (Thresholds(4, 0.7), []),
        (Thresholds(9, None), ["max_bad_pixels 9 is the largest of its candidates"]),
        (
            Thresholds(2, 0.9),
            [
                "max_bad_pixels 2 is the smallest of its candidates",
                "min_clip_similarity 0.9 is the largest of its candidates",
            ],
        ),
        (Thresholds(None, 0.5), ["min_clip_similarity 0.5 is the smallest of its candidates"]),
    ],
)
def test_a_value_at_an_end_of_its_candidates_is_told(chosen: Thresholds, said: list[str]) -> None:
    assert at_ends(chosen, [9, 2, 4], [0.5, 0.7, 0.9]) == said


def test_an_only_candidate_is_told() -> None:
    assert at_ends(Thresholds(4, None), [4], [None]) == ["max_bad_pixels 4 is the only one of its candidates"]


def test_bootstrap_samples_are_seeded_and_of_full_size() -> None:
    samples = resample(5, 400, generator("bootstrap", 0))
    assert samples.shape == (400, 5)
    assert (samples.sum(1) == 5).all()
    assert samples.mean(0) == pytest.approx(np.ones(5), abs=0.2)
    np.testing.assert_array_equal(samples, resample(5, 400, generator("bootstrap", 0)))
    assert (samples != resample(5, 400, generator("bootstrap", 1))).any()


def test_the_interval_covers_a_known_precision() -> None:
    """30 instances of 4 kept poses, each good in 70 %: 300 such experiments, of which about 95 % must cover 0.7."""
    rng = np.random.default_rng(0)
    samples = resample(30, 500, generator("bootstrap", 2))
    covered = 0
    for good in rng.binomial(4, 0.7, (300, 30)):
        counts = np.stack([np.full(30, 4), np.full(30, 4), good, good], -1)
        low, high = interval(rates(samples @ counts).precision)
        covered += low <= 0.7 <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_intervals_are_over_instances_not_poses() -> None:
    """Ten instances of 100 poses that are all good or all bad tell no more than ten poses would."""
    names = [f"i{k}" for k in range(10) for _ in range(100)]
    good = np.repeat([True, False], 500)
    samples = resample(10, 1000, generator("bootstrap", 3))
    found = measure("all", Thresholds(None, None), names, np.ones(1000, bool), good, samples, rates)
    assert found.precision.value == 0.5
    assert found.precision.high - found.precision.low > 0.5  # 0.06 if the 1000 poses were independent


def test_an_undefined_sample_leaves_the_interval_alone() -> None:
    assert interval(np.array([np.nan, 0.4, 0.4])) == (0.4, 0.4)
    assert np.isnan(interval(np.array([np.nan, np.nan]))).all()


def test_gains_over_random_are_paired() -> None:
    """Of four poses two are kept; easy instances have 3 good and keep 2 of them, hard ones 1 of 1: always +0.25."""
    names = [f"i{k}" for k in range(8) for _ in range(4)]
    kept = np.tile([True, True, False, False], 8)
    good = np.concatenate([np.tile([True, True, True, False], 4), np.tile([True, False, False, False], 4)])
    samples = resample(8, 200, generator("bootstrap", 4))
    found = measure("both", Thresholds(1, 0.5), names, kept, good, samples, rates)
    assert (found.poses, found.kept, found.good) == (32, 16, 16)
    assert found.precision_gain == pytest.approx((0.25, 0.25, 0.25))
    assert found.precision.low < 0.74 < 0.76 < found.precision.high  # though precision itself is uncertain
    assert found.recall_gain.value == pytest.approx(12 / 16 - 1 / 2)
    control = measure("random", Thresholds(None, None), names, kept, good, samples, random_rates)
    assert (control.precision.value, control.recall.value) == (0.5, 0.5)
    assert control.precision_gain == control.recall_gain == (0, 0, 0)
