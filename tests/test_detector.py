"""The alarm budget holds in simulated years without a change, and changes are found in time."""

import numpy as np
import pytest
from benchmarks.drift.years import LOOKS, year
from scipy.stats import binom, norm

from prodml.stats.betting import bet_on_looks, confidence_sequence, upper_bound
from prodml.stats.components import Means
from prodml.stats.detector import baseline, binomial_normal, detectable, normal_of, onset, watch

YEARS, COMPONENTS = 300, 20
WEIGHTS = np.full(COMPONENTS, 1 / COMPONENTS)
NUMBERS = np.zeros(COMPONENTS, bool)


def means(generator, windows, dispersion, rows=500, years=YEARS):
    """Window means whose variance is `dispersion` times that of independent rows."""
    drawn = generator.normal(0, np.sqrt(dispersion / rows), (years, windows, COMPONENTS))
    return Means(drawn, np.full(drawn.shape, float(rows)))


@pytest.mark.parametrize("dispersion", [1.0, 5.0])
@pytest.mark.parametrize("windows", [10, 30])
def test_a_year_without_a_change_has_an_alarm_as_rarely_as_promised(windows, dispersion):
    generator = np.random.default_rng([windows, int(dispersion)])
    known = baseline(means(generator, windows, dispersion), np.ones(COMPONENTS))
    seen = watch(known, means(generator, LOOKS, dispersion), NUMBERS, WEIGHTS, LOOKS)
    for level in (seen.notice, seen.alert):
        alarmed = int((level.sum(axis=-1) >= 1).any(axis=-1).sum())
        assert alarmed <= binom.ppf(0.999, YEARS, 0.05)


def test_a_reference_taken_for_the_truth_breaks_the_promise():
    """The test above can fail: with a reference that is not paid for it does."""
    generator = np.random.default_rng(3)
    known = baseline(means(generator, 30, 5.0), np.ones(COMPONENTS))
    believed = known._replace(rows=known.rows * 1e6)
    seen = watch(believed, means(generator, LOOKS, 5.0), NUMBERS, WEIGHTS, LOOKS)
    alarmed = int((seen.notice.sum(axis=-1) >= 1).any(axis=-1).sum())
    assert alarmed > binom.ppf(0.999, YEARS, 0.05)


@pytest.mark.parametrize(("rows", "windows", "daily"), [(500, 10, 0.0), (5000, 30, 0.05)])
def test_twenty_counted_columns_keep_the_budget_of_a_year(rows, windows, daily):
    seen = [year(seed, rows, windows, daily) for seed in range(20)]
    assert sum(one.alarms("notice").any() for one in seen) <= binom.ppf(0.999, 20, 0.05)
    assert not any(one.alarms("alert").any() for one in seen)


def test_a_shift_is_found_in_its_first_looks_and_dated():
    generator = np.random.default_rng(5)
    known = baseline(means(generator, 30, 1.0), np.ones(COMPONENTS))
    calm, moved = means(generator, 60, 1.0), means(generator, 10, 1.0)
    moved.mean[..., 0] += 0.4
    both = Means(*(np.concatenate(part, axis=1) for part in zip(calm, moved, strict=True)))
    seen = watch(known, both, NUMBERS, WEIGHTS, LOOKS)
    for level, late in ((seen.notice, 2), (seen.alert, 4)):
        alarm = level.sum(axis=-1) >= 1
        assert (alarm.argmax(axis=-1) - 60 <= late)[alarm.any(axis=-1)].mean() > 0.95
        assert alarm.any(axis=-1).mean() > 0.99
    assert np.mean([onset(z[:, 0]) == 60 for z in seen.z]) > 0.95


def test_a_shift_within_the_tolerance_is_noticed_and_never_alerts():
    generator = np.random.default_rng(6)
    rows = 100_000
    known = baseline(means(generator, 30, 1.0, rows), np.ones(COMPONENTS))
    small = means(generator, 60, 1.0, rows)
    small.mean[..., 0] += 0.03
    seen = watch(known, small, NUMBERS, WEIGHTS, LOOKS, tolerance=0.1)
    assert (seen.notice.sum(axis=-1) >= 1).any(axis=-1).mean() > 0.99
    assert not (seen.alert.sum(axis=-1) >= 1).any()


def test_what_is_said_to_be_noticed_is_noticed_four_times_in_five():
    generator = np.random.default_rng(7)
    known = baseline(means(generator, 30, 1.0, years=1000), np.ones(COMPONENTS))
    one = means(generator, 1, 1.0, years=1000)
    smallest = detectable(known, one.rows[:, 0], WEIGHTS, LOOKS, 0.05)[:, 0]
    one.mean[:, 0, 0] += smallest
    seen = watch(known, one, NUMBERS, WEIGHTS, LOOKS)
    found = int((seen.notice.sum(axis=-1) >= 1).sum())
    assert binom.ppf(0.001, 1000, 0.7) <= found <= binom.ppf(0.999, 1000, 0.95)


def test_looks_without_rows_say_nothing():
    generator = np.random.default_rng(8)
    known = baseline(means(generator, 30, 1.0, years=1), np.ones(COMPONENTS))
    empty = Means(np.zeros((1, 5, COMPONENTS)), np.zeros((1, 5, COMPONENTS)))
    seen = watch(known, empty, NUMBERS, WEIGHTS, LOOKS)
    assert (seen.z == 0).all() and np.isfinite(seen.notice).all()
    assert seen.notice.sum(axis=-1).max() < 0.01


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.3])
def test_binomial_tails_are_never_further_out_than_chance(share):
    generator, rows = np.random.default_rng(9), 500
    z = binomial_normal(
        generator.binomial(rows, share, 20_000), np.full(20_000, rows), np.array(share)
    )
    for bound in (1.6, 2.3, 3.1):
        assert (np.abs(z) > bound).mean() <= 2 * norm.sf(bound) + 0.003


def test_student_tails_become_normal_tails():
    generator = np.random.default_rng(10)
    z = normal_of(generator.standard_t(9, 100_000), np.array(9.0))
    assert abs(z.std() - 1) < 0.02 and abs((np.abs(z) > 2.58).mean() - 0.01) < 0.003


@pytest.mark.parametrize("truth", [0.02, 0.1, 0.4])
def test_bets_on_losses_keep_their_budget_and_bounds_hold(truth):
    generator, bad = np.random.default_rng([11, int(100 * truth)]), 0
    for _ in range(200):
        bound = upper_bound(generator.random(2000) < truth, 0.025)
        looks = [generator.random(100) < truth for _ in range(120)]
        bad += bool((bet_on_looks(looks, bound, 120, 0.025) >= 1).any())
    assert bad <= binom.ppf(0.999, 200, 0.05)


def test_a_confidence_sequence_misses_the_truth_at_any_time_as_rarely_as_it_says():
    generator, missed = np.random.default_rng(12), 0
    for _ in range(200):
        low, high = confidence_sequence(generator.beta(1, 3, 800))
        missed += bool(((low > 0.25) | (high < 0.25)).any())
    assert missed <= binom.ppf(0.999, 200, 0.05)


def test_beyond_one_there_is_nothing_to_bet_on():
    assert bet_on_looks([np.ones(500)] * 3, 1.0, 3, 0.05).max() < 1
    assert upper_bound(np.array([]), 0.05) == 1.0
