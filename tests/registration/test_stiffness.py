"""How stiff a map is to be: what images tell of it."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from brains import VOXEL_UM, atlas_grid, brain, displacement_field, error_um, image_of, prepared, warped
from cloudreg.registration import descent
from cloudreg.registration.affine import affine_group
from cloudreg.registration.descent import first_intensity
from cloudreg.registration.fit import choose_scales, solve
from cloudreg.registration.flow import integrate
from cloudreg.registration.levels import Image, make_level
from cloudreg.registration.smoothness import Motion, Smoothness
from cloudreg.registration.solver import Fit, Problem, fit_intensities, fit_velocity
from cloudreg.registration.stiffness import blocks, blocks_tell, certainty, correlations, crowding, shorter, softened
from cloudreg.settings import RegistrationSettings
from cloudreg.space import Grid

NODES = Grid.from_spacing((22, 20, 21), (500.0,) * 3, (-900.0, -900.0, -900.0))
PLACE = Grid.from_spacing((48, 40, 44), (VOXEL_UM,) * 3, (-350.0, -420.0, -390.0))


def problem_of(target, atlas, voxel_um):
    smoothness = Smoothness(NODES.shape, np.full(3, 500.0, dtype=np.float32), 900.0)
    return Problem(make_level(target, atlas, voxel_um), NODES, smoothness, 0.01)


def settled(problem):
    """A fit that moves nothing, with the contrast and the mixture that suit the images."""
    level = problem.level
    values = Image(brain(), np.ones_like(brain()), atlas_grid())
    intensity = first_intensity(level.target, values, RegistrationSettings())
    still = np.zeros((*NODES.shape, 3), dtype=np.float32)
    flow = integrate(still, problem.smoothness.spacing)
    return fit_intensities(problem, Fit(np.eye(4), Motion(still, still), flow, (intensity,)), iterations=8)


def doubled(values):
    """An image at half the voxel size, in the same place."""
    fine = values
    for axis in range(3):
        fine = np.repeat(fine, 2, axis=axis)
    return image_of(fine, (-VOXEL_UM / 4,) * 3, (VOXEL_UM / 2,) * 3)


def with_noise(image, noise):
    return replace(image, values=(image.values + noise).astype(np.float32))


def test_voxels_count_by_the_noise_that_each_has_of_its_own():
    rng = np.random.default_rng(0)
    # Flat inside, so that the images differ by nothing but their noise.
    flat = gaussian_filter((brain() > 0.3).astype(np.float32), 1.0)
    atlas, target = image_of(flat), doubled(flat)
    fine = target.values.shape
    own = 0.2 * rng.standard_normal(fine)
    shared = doubled(0.2 * rng.standard_normal(flat.shape)).values
    found = {}
    for name, noise in (("own", own), ("shared", shared), ("both", own + shared)):
        seen = with_noise(target, noise)
        problems = [problem_of(seen, atlas, size) for size in (VOXEL_UM, VOXEL_UM / 2)]
        found[name] = crowding(*((problem, settled(problem)) for problem in problems))
    assert found["own"] == pytest.approx(1, abs=0.15)
    assert found["shared"] == pytest.approx(8, abs=0.7)
    # Half of the fine variance is shared, and an eighth of the other half is left at the coarse voxels.
    assert found["both"] == pytest.approx(8 * (0.5 + 0.5 / 8), rel=0.1)


def test_noise_is_told_from_what_has_a_shape():
    rng = np.random.default_rng(1)
    atlas = image_of(brain())
    noise = 0.1 * rng.standard_normal(atlas.values.shape)
    shape = gaussian_filter(rng.standard_normal(atlas.values.shape), 1.5)
    for added, expected in ((noise, (0.0, 0.0)), (0.1 * shape / shape.std(), np.exp(-np.array([1, 9]) / (4 * 1.5**2)))):
        problem = problem_of(with_noise(atlas, added), atlas, VOXEL_UM)
        np.testing.assert_allclose(correlations(problem, settled(problem), (1, 3)), expected, atol=0.1)


def test_what_is_withheld_is_in_blocks_and_the_same_each_time():
    grid = Grid.from_spacing((120, 100, 80), (100.0, 100.0, 200.0))
    part = blocks(grid, 500.0, 16, 0.12)
    np.testing.assert_array_equal(part, blocks(grid, 500.0, 16, 0.12))
    assert (part >= 0).mean() == pytest.approx(0.12, abs=0.02)
    assert set(np.unique(part)) == {-1, *range(16)}
    # Along an axis of 100 um, faces are no nearer than 5 voxels.
    z, _, _ = np.nonzero(part[1:] != part[:-1])
    assert z.size and not ((z + 1) % 5).any()


def test_a_gain_is_held_against_how_it_varies_between_parts():
    rng = np.random.default_rng(4)
    sizes = rng.integers(200, 2000, 16)
    # Voxels of a part gain alike, so that there are 16 independent gains however many voxels there are.
    draws = [certainty((rng.standard_normal(16)) * sizes, sizes) for _ in range(4000)]
    assert np.mean(draws) == pytest.approx(0, abs=0.1)
    assert np.std(draws) == pytest.approx(1, abs=0.15)
    assert np.mean(np.array(draws) > 2) < 0.05
    # A mean of one spread is four standard errors of 16 alike parts.
    alike = np.full(16, 500)
    draws = [certainty((1 + rng.standard_normal(16)) * alike, alike) for _ in range(4000)]
    assert np.median(draws) == pytest.approx(4, abs=0.2)
    assert certainty(np.zeros(16), sizes) == 0


def test_the_last_third_of_the_steps_sees_all(monkeypatch):
    rng = np.random.default_rng(3)
    atlas = image_of(brain())
    moved = image_of(np.roll(brain(), 1, axis=0), (60.0, -40.0, 90.0))
    problem = problem_of(with_noise(moved, 0.03 * rng.standard_normal(brain().shape)), atlas, VOXEL_UM)
    fits, seen = {}, []

    linearize = Problem.linearize

    def watched(self, fit, **options):
        seen.append(self.level.active.size)
        return linearize(self, fit, **options)

    monkeypatch.setattr(Problem, "linearize", watched)
    for apart_um in (0.0, 2 * VOXEL_UM):
        fits[apart_um], energies = fit_velocity(
            problem,
            settled(problem),
            affine_group("affine", np.zeros(3), np.zeros(3), 7000.0),
            iterations=12,
            apart_um=apart_um,
            smoothing=None,
            tolerance=0.0,
            advance=lambda n: None,
        )
        assert len(energies) == 12
    every, few = problem.level.active.size, problem.thinned(2 * VOXEL_UM).level.active.size
    # One more at the beginning, for the affine.
    assert seen == [every] * 13 + [few] * 9 + [every] * 4
    ends = [problem.evaluate(fit).data + problem.prior(fit) for fit in fits.values()]
    assert ends[1] == pytest.approx(ends[0], rel=1e-3)


def registered(target, **settings):
    chosen = RegistrationSettings(**{"resolution_um": VOXEL_UM, "levels": 2, **settings})
    atlas = prepared(brain(), atlas_grid(), "template", missing_data=False)
    scales = choose_scales(atlas, PLACE, atlas_grid(), chosen)
    return solve(prepared(target, PLACE), atlas, [("asr", np.eye(3))], chosen, scales=scales)


def seen_through(field, texture=0.0):
    """A warped brain with a sensor's noise and a texture that the template has not, and where its voxels belong."""
    rng = np.random.default_rng(0)
    seen, truth = warped(brain(), PLACE, np.eye(3), (150.0, -120.0, 90.0), field)
    false = gaussian_filter(rng.standard_normal(seen.shape), 1.5)
    seen = seen + np.where(seen > 0.2, texture * false / false.std(), 0)
    return np.clip(100 + 900 * seen + 12 * rng.standard_normal(seen.shape), 1, None).astype(np.float32), truth


def displaced(grid, fit, points_um):
    index = grid.um_to_index(points_um).T
    return np.stack([map_coordinates(c, index, order=1) for c in np.moveaxis(fit.flow.displacement, 3, 0)], axis=1)


def median_error(solution, truth):
    return np.median(error_um(solution, PLACE, truth)[0])


@pytest.mark.parametrize(
    ("field", "kernel_um", "found_um", "better"),
    [((450.0, 3.5), 600.0, 600.0, 0.65), ((300.0, 2.5), 1200.0, 720.0, 0.8)],
    ids=["too heavy", "too long"],
)
def test_a_prior_that_is_too_stiff_for_what_is_seen_is_softened(field, kernel_um, found_um, better):
    target, truth = seen_through(displacement_field(3, *field))
    stiff = {"regularization": (0.03, 0.03), "kernel_um": kernel_um, "velocity_spacing_um": kernel_um * 7 / 12}
    fixed, told = registered(target, soften=False, **stiff), registered(target, **stiff)
    assert fixed.softness == 1 and told.softness == 5
    assert fixed.problem.smoothness.length == kernel_um
    assert told.problem.smoothness.length == pytest.approx(found_um)
    assert told.problem.velocity_grid == told.velocity_grid
    assert median_error(told, truth) < better * median_error(fixed, truth)
    # It goes on where it was, and each of the further steps gains.
    assert told.energies[: len(fixed.energies)] == fixed.energies
    assert len(told.energies) > len(fixed.energies)
    assert all(energy.gained >= 0 for energy in told.energies)


@pytest.mark.parametrize("times", [(), (3,)], ids=["stationary", "in time"])
def test_a_shorter_kernel_begins_with_the_same_map(noisy_problem, times):
    problem, fit = noisy_problem
    momentum = np.random.default_rng(5).standard_normal((*times, *NODES.shape, 3)).astype(np.float32)
    motion = problem.smoothness.motion(momentum)
    motion = motion.times(300.0 / np.abs(motion.velocity).max())
    moved = replace(fit, motion=motion, flow=integrate(motion.velocity, problem.smoothness.spacing))
    softer, start = shorter(problem, moved)
    assert softer.smoothness.length < problem.smoothness.length
    assert softer.prior_weight == problem.prior_weight
    assert start.motion.velocity.shape == (*times, *softer.velocity_grid.shape, 3)
    periods = [np.array(p.velocity_grid.shape) * p.velocity_grid.voxel_size_um for p in (problem, softer)]
    np.testing.assert_allclose(*periods)
    points = np.random.default_rng(6).uniform(1500, 6500, (500, 3))
    there = [displaced(p.velocity_grid, f, points) for p, f in ((problem, moved), (softer, start))]
    assert np.linalg.norm(there[0], axis=1).max() > 100
    assert np.linalg.norm(there[1] - there[0], axis=1).max() < 0.05 * np.linalg.norm(there[0], axis=1).max()
    np.testing.assert_allclose(
        softer.smoothness.motion(start.motion.momentum).velocity, start.motion.velocity, atol=0.1
    )
    assert softer.evaluate(start).data == pytest.approx(problem.evaluate(moved).data, rel=0.02)


@pytest.mark.parametrize("texture", [0.0, 0.06], ids=["noise", "false texture"])
def test_what_is_withheld_tells_noise_and_a_false_texture_from_tissue(texture, monkeypatch):
    # As if nobody had looked before at whether blocks tell.
    monkeypatch.setattr(descent, "blocks_tell", lambda *arguments: True)
    target, truth = seen_through(displacement_field(3, 350.0, 4.5), texture)
    told = registered(target)
    assert told.softness == 1
    assert median_error(told, truth) < (0.05 if texture == 0 else 0.35) * VOXEL_UM


def test_a_softer_prior_gets_no_more_steps_than_the_one_there_is(noisy_problem):
    problem, fit = noisy_problem
    taken = {}

    def fitted(trial, start, steps):
        taken[trial.prior_weight] = taken.get(trial.prior_weight, 0) + steps
        return start

    # What moves nothing foretells nothing.
    assert softened(problem, fit, fitted, VOXEL_UM) == (problem, fit)
    first, weaker = taken.values()
    assert list(taken) == [problem.prior_weight, problem.prior_weight / 5]
    # Both go on from where what was withheld is forgotten.
    assert first == 2 * weaker


def test_blocks_tell_of_what_is_no_noise_and_short():
    rng = np.random.default_rng(1)
    atlas = image_of(brain())
    for smooth, expected in ((0.0, False), (1.0, True), (12.0, False)):
        added = gaussian_filter(rng.standard_normal(atlas.values.shape), smooth)
        problem = problem_of(with_noise(atlas, 0.1 * added / added.std()), atlas, VOXEL_UM)
        assert blocks_tell(problem, settled(problem), VOXEL_UM) == expected


@pytest.fixture(scope="module")
def noisy_problem():
    rng = np.random.default_rng(2)
    atlas = image_of(brain())
    target = with_noise(atlas, 0.05 * rng.standard_normal(atlas.values.shape))
    problem = problem_of(target, atlas, VOXEL_UM)
    return problem, settled(problem)


def test_some_rows_tell_the_sums_of_all(noisy_problem):
    problem, fit = noisy_problem
    few = problem.thinned(2 * VOXEL_UM)
    assert few.level.active.size == pytest.approx(problem.level.active.size / 4, rel=0.05)
    assert few.observed == problem.observed
    # Noise and place of the rows, no more.
    assert few.evaluate(fit).data == pytest.approx(problem.evaluate(fit).data, rel=0.02)
    some, every = (one.linearize(fit).hessian.sum(axis=(0, 1, 2)) for one in (few, problem))
    np.testing.assert_allclose(some[[0, 3, 5]], every[[0, 3, 5]], rtol=0.1)


def test_rows_that_lie_far_enough_apart_are_all_kept(noisy_problem):
    problem, _ = noisy_problem
    assert problem.thinned(1.5 * VOXEL_UM) is problem
    flat = image_of(brain(), voxel_um=(2 * VOXEL_UM, VOXEL_UM, VOXEL_UM))
    few = problem_of(flat, image_of(brain()), VOXEL_UM).thinned(2 * VOXEL_UM)
    z, y, x = (np.unique(axis) for axis in np.unravel_index(few.level.active, brain().shape))
    assert (np.diff(z).max(), np.diff(y).max(), np.diff(x).max()) == (1, 2, 1)
