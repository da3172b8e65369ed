"""Pruning's two thresholds: how good they are, how they are chosen, and how far the numbers can be trusted.

Everything here works on a table with one row per pose and the columns
    subject         the instance, e.g. "car-1000001"
    bad_pixels_max  the first score of `cad.prior.prune`: bad pixels of the worst sample
    clip_min        the second score: cosine of the sample that is least like the reference
    good            whether the chosen sample, the one most like the reference, is a good view (`cad.prior.truth`)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas
import torch

from cad.errors import UserError

LOW, HIGH = 2.5, 97.5  # percentiles of a 95 % interval


class Thresholds(NamedTuple):
    """A pose is kept up to so many bad pixels and from this cosine on; None where a check is left out."""

    max_bad_pixels: int | None
    min_clip_similarity: float | None


class Rates(NamedTuple):
    """Share of poses kept, share of kept poses that are good, share of good poses that are kept; NaN for 0 / 0.

    Numbers, or arrays [D] of numbers.
    """

    share: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


def keep(table: pandas.DataFrame, thresholds: Thresholds) -> np.ndarray:
    """Which poses are kept, bool [M]: `cad.prior.prune.decide` over a whole table."""
    most, least = thresholds
    kept = np.ones(len(table), bool)
    if most is not None:
        kept &= table["bad_pixels_max"].to_numpy() <= most
    if least is not None:
        kept &= table["clip_min"].to_numpy() >= least
    return kept


def count(subjects: Sequence[str], kept: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Poses, kept, good, and good ones kept, of each instance in the order of its name: int [I, 4].

    subjects: M names; kept, good: bool [M].
    """
    names, index = np.unique(np.asarray(subjects), return_inverse=True)
    found = np.zeros((len(names), 4), np.int64)
    np.add.at(found, index, np.stack([np.ones_like(kept), kept, good, kept & good], -1))
    return found


def rates(counts: np.ndarray) -> Rates:
    """The rates of counts [..., 4] as `count` gives them, summed over instances."""
    poses, kept, good, both = np.moveaxis(counts, -1, 0)
    return Rates(share=_divide(kept, poses), precision=_divide(both, kept), recall=_divide(both, good))


def random_rates(counts: np.ndarray) -> Rates:
    """The expected rates of keeping as many poses at random, in closed form.

    Each pose is as likely as any other to be among the kept ones, so the expected precision is the share of good poses
    among all, and the expected recall is the share of poses that are kept. NaN precision where nothing is kept.
    """
    poses, kept, good, _ = np.moveaxis(counts, -1, 0)
    share = _divide(kept, poses)
    return Rates(share=share, precision=np.where(kept > 0, _divide(good, poses), np.nan), recall=share)


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def choose(
    table: pandas.DataFrame, bad_pixels: Sequence[int | None], similarities: Sequence[float | None], min_recall: float
) -> Thresholds:
    """The rule: of all pairs of candidates that keep at least `min_recall` of the good poses, the most precise one.

    Precision alone would keep a handful of poses, and a generator needs many. Among equally precise pairs the one with
    more recall wins, then the one that allows more bad pixels, then the smaller similarity. A candidate None leaves its
    check out. Raises UserError where no pair keeps enough.
    """
    good = table["good"].to_numpy()
    best: tuple[tuple[float, ...], Thresholds] | None = None
    for most in bad_pixels:
        for least in similarities:
            pair = Thresholds(most, least)
            found = rates(count(table["subject"].tolist(), keep(table, pair), good).sum(0))
            if not found.recall >= min_recall or np.isnan(found.precision):  # NaN recall: there is no good pose
                continue
            loose = (np.inf if most is None else float(most), np.inf if least is None else -least)
            rank = (float(found.precision), float(found.recall), *loose)
            if best is None or rank > best[0]:
                best = (rank, pair)
    if best is None:
        raise UserError(
            f"pruning.min_recall: no pair of thresholds keeps {min_recall:.0%} of the {int(good.sum())} good poses; "
            "lower it, or add looser values to pruning.max_bad_pixels and pruning.min_clip_similarity"
        )
    return best[1]


def at_ends(chosen: Thresholds, bad_pixels: Sequence[int | None], similarities: Sequence[float | None]) -> list[str]:
    """A remark on each chosen threshold that is the smallest or the largest of its candidates: beyond may be better."""
    found = []
    for name, value, grid in zip(Thresholds._fields, chosen, (bad_pixels, similarities), strict=True):
        numbers = [candidate for candidate in grid if candidate is not None]
        if value is None or value not in (min(numbers), max(numbers)):
            continue
        which = "only one" if len(set(numbers)) == 1 else "smallest" if value == min(numbers) else "largest"
        found.append(f"{name} {value:g} is the {which} of its candidates")
    return found


def resample(instances: int, draws: int, generator: torch.Generator) -> np.ndarray:
    """How often each instance is in each bootstrap sample of `instances` instances drawn with replacement, [D, I]."""
    picks = torch.randint(instances, (draws, instances), generator=generator)
    return torch.zeros(draws, instances).scatter_add_(1, picks, torch.ones(draws, instances)).long().numpy()


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of bootstrap values [D]; samples where the value is undefined are left out."""
    if np.isnan(values).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(values, [LOW, HIGH])
    return float(low), float(high)


class Estimate(NamedTuple):
    """A value and its 95 % interval over instances."""

    value: float
    low: float
    high: float


class Measured(NamedTuple):
    """One way to prune, measured: its rates, and by how much it beats keeping the same share at random."""

    name: str
    thresholds: Thresholds
    poses: int
    kept: int
    good: int
    share: Estimate
    precision: Estimate
    recall: Estimate
    precision_gain: Estimate
    recall_gain: Estimate


def measure(
    name: str,
    thresholds: Thresholds,
    subjects: Sequence[str],
    kept: np.ndarray,
    good: np.ndarray,
    samples: np.ndarray,
    to_rates: Callable[[np.ndarray], Rates],
) -> Measured:
    """Rates of keeping `kept` [M] with intervals over the bootstrap `samples` [D, I] of `resample`.

    The gains over random are taken within each bootstrap sample, so they are paired. `to_rates` is `rates`, or
    `random_rates` where the row itself is the random control of the share that `kept` has.
    """
    counts = count(subjects, kept, good)
    drawn = samples @ counts
    value, spread = to_rates(counts.sum(0)), to_rates(drawn)
    control, control_spread = random_rates(counts.sum(0)), random_rates(drawn)
    estimates = [Estimate(float(v), *interval(s)) for v, s in zip(value, spread, strict=True)]
    gains = [
        Estimate(float(v - c), *interval(s - t))
        for v, c, s, t in zip(value[1:], control[1:], spread[1:], control_spread[1:], strict=True)
    ]
    poses, number, number_good, _ = (int(n) for n in counts.sum(0))
    return Measured(name, thresholds, poses, number, number_good, *estimates, *gains)
