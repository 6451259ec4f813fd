"""The mixture follows the data as far as it may, and no class ever dies or swallows the others."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from cloudreg.registration.kernels import evaluate
from cloudreg.registration.mixture import Mixture

FIRST = Mixture(0.3, 0.5, 0.2, 1.0, 0.0, (0.79, 0.2, 0.01))
EVERYTHING = frozenset(("noise", "greys", "variances", "priors"))


def sums(match=(1000.0, 0.1), artifact=(200.0, 1.2, 0.3), background=(50.0, 0.05, 0.1)):
    """Statistics of classes that are (count, spread) and (count, mean, spread)."""
    a, b = artifact, background
    return np.array(
        [
            match[0],
            match[0] * match[1] ** 2,
            *(a[0], a[0] * a[1], b[0], b[0] * b[1]),
            *(c[0] * (c[1] ** 2 + c[2] ** 2) for c in (a, b)),
        ]
    )


def test_everything_that_is_estimated_is_what_the_sums_say():
    new = FIRST.refitted(sums(), 1750.0, EVERYTHING)
    assert new.sigma_match == pytest.approx(0.1)
    assert (new.artifact, new.background) == pytest.approx((1.2, 0.05))
    assert (new.sigma_artifact, new.sigma_background) == pytest.approx((0.3, 0.1))
    assert new.priors == pytest.approx((0.875, 0.1, 0.025))


@pytest.mark.parametrize("one", sorted(EVERYTHING))
def test_what_is_not_estimated_stays(one):
    names = {
        "noise": {"sigma_match"},
        "greys": {"artifact", "background"},
        "variances": {"sigma_artifact", "sigma_background"},
        "priors": {"priors"},
    }
    new = FIRST.refitted(sums(), 1750.0, frozenset((one,)))
    changed = {name for name in vars(FIRST) if getattr(new, name) != getattr(FIRST, name)}
    assert changed == names[one]


def test_a_spread_is_about_the_mean_that_is_used():
    """Means that are held or limited leave more to the spread."""
    held = FIRST.refitted(sums(), 1750.0, frozenset(("variances",)))
    assert held.sigma_artifact == pytest.approx(np.hypot(0.3, 0.2))


def test_floors_keep_every_class_alive_and_in_its_role():
    new = FIRST.refitted(
        sums((1e6, 1e-5), (2.0, 0.1, 1e-4), (2.0, 0.9, 1e-4)), 1e6, EVERYTHING - frozenset(("variances",))
    )
    assert min(new.priors) > 0.004 and sum(new.priors) == pytest.approx(1)
    assert new.artifact > new.background
    assert new.sigma_match >= 0.02
    narrow = FIRST.refitted(sums(artifact=(9.0, 1.2, 0.0), background=(9.0, 0.05, 0.0)), 1e3, EVERYTHING)
    assert narrow.sigma_artifact >= 0.2 and narrow.sigma_background >= 0.05
    wide = FIRST.refitted(sums(artifact=(9.0, 1.2, 50.0)), 1e3, EVERYTHING)
    assert wide.sigma_artifact <= 1


def test_empty_classes_and_no_voxels_at_all_change_nothing():
    assert FIRST.refitted(np.zeros(8), 0.0, EVERYTHING) == FIRST
    only = FIRST.refitted(sums(artifact=(0.0, 0.0, 0.0), background=(0.0, 0.0, 0.0)), 1e3, EVERYTHING)
    assert replace(only, sigma_match=0.3, priors=FIRST.priors) == FIRST
    assert np.isfinite(only.packed()).all()


def test_em_finds_the_mixture_of_noise_that_it_is_shown():
    """No atlas and no tissue: what is predicted is 0, and classes are told apart by their greys alone."""
    rng = np.random.default_rng(0)
    shape, count = (30, 30, 30), 27000
    kind = rng.choice(3, count, p=(0.7, 0.25, 0.05))
    values = np.choose(kind, [0.05 * rng.standard_normal(count), rng.normal(1.2, 0.3, count), np.full(count, -0.4)])
    values = (values + np.where(kind == 2, rng.normal(0, 0.08, count), 0)).astype(np.float32).reshape(shape)
    zero, still = np.zeros((6, 6, 6), np.float32), np.zeros((4, 4, 4, 3), np.float32)
    model = [zero, np.float32(0), still, np.hstack([np.eye(4)[:3], np.ones((3, 1))]), np.eye(4)[:3], np.eye(3)]
    flat = [np.zeros((2, 2, 2, 4), np.float32), np.zeros((3, 2)), np.array([0, 1, -1, 1, 0.1], np.float32)]
    mixture = Mixture(0.05, 0.5, 0.2, 1.0, -0.2, (0.79, 0.2, 0.01))
    objectives = []
    for _ in range(30):
        weight, active = np.ones(shape, np.float32), np.arange(count)
        data, statistics, moments = evaluate(values, weight, active, *model, *flat, mixture.packed())
        objectives.append(data)
        mixture = mixture.refitted(statistics, float(moments[..., 0].sum()), EVERYTHING)
    assert mixture.priors == pytest.approx((0.7, 0.25, 0.05), abs=0.01)
    assert (mixture.sigma_artifact, mixture.sigma_background) == pytest.approx((0.3, 0.08), abs=0.02)
    assert (mixture.artifact, mixture.background) == pytest.approx((1.2, -0.4), abs=0.02)
    assert all(after <= before + 1e-6 * abs(before) for before, after in itertools.pairwise(objectives))
