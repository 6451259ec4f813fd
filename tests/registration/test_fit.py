import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from brains import (
    SHAPE,
    VOXEL_UM,
    atlas_grid,
    brain,
    displacement_field,
    error_um,
    head,
    image_of,
    mapped,
    prepared,
    warped,
)
from cloudreg.registration.checkpoint import Checkpoint
from cloudreg.registration.cuts import flat_faces
from cloudreg.registration.fit import choose_scales, most_steps, solve
from cloudreg.registration.pose import implausible
from cloudreg.settings import RegistrationSettings
from cloudreg.space import Grid, axes_between, proper_orientations

IDENTITY = [("asr", np.eye(3))]


def registered(target, grid, rotations=IDENTITY, template=None, checkpoint=None, **settings):
    """Error of the fitted map at every voxel comes from `error_um`."""
    template = brain() if template is None else template
    atlas = prepared(template, atlas_grid(), "template", missing_data=False)
    chosen = RegistrationSettings(**{"resolution_um": VOXEL_UM, "levels": 2, **settings})
    scales = choose_scales(atlas, grid, atlas_grid(), chosen)
    return solve(prepared(target, grid), atlas, rotations, chosen, scales=scales, checkpoint=checkpoint)


def test_levels_begin_where_the_brain_is_coarse_however_fine_they_end():
    atlas = image_of(brain())
    unit = choose_scales(atlas, atlas.grid, atlas.grid, RegistrationSettings()).unit
    for finest, count in ((0.25, 5), (0.5, 4), (1.0, 3), (2.0, 2), (4.0, 1), (20.0, 1)):
        settings = RegistrationSettings(resolution_um=finest * unit)
        levels = choose_scales(atlas, atlas.grid, atlas.grid, settings).levels
        assert len(levels) == count
        assert levels[-1] == pytest.approx(finest * unit)
        assert most_steps(settings, count) == sum((8, 8, 8, 15, 25)[-count:])
    few = RegistrationSettings(resolution_um=0.25 * unit, levels=2)
    assert len(choose_scales(atlas, atlas.grid, atlas.grid, few).levels) == 2


@pytest.fixture(scope="module")
def case():
    linear = Rotation.from_rotvec([0.06, -0.05, 0.07]).as_matrix() @ np.diag([1.03, 0.97, 1.02])
    grid = Grid.from_spacing((48, 40, 44), (VOXEL_UM,) * 3, (-350.0, -420.0, -390.0))
    seen, truth = warped(brain(), grid, linear, (150.0, -120.0, 90.0), displacement_field(3))
    return grid, seen, truth


def noisy(image, seed=0):
    """A sensor's offset and noise: nothing is exactly zero."""
    rng = np.random.default_rng(seed)
    return np.clip(100 + 900 * image + 12 * rng.standard_normal(image.shape), 1, None).astype(np.float32)


def test_an_image_registers_to_itself_exactly():
    values = brain()
    solution = registered(values, atlas_grid())
    fit = solution.fit
    np.testing.assert_allclose(fit.to_atlas[:3, :3], np.eye(3), atol=3e-6)
    points = atlas_grid().index_to_um(np.argwhere(values > 0.3))
    assert np.linalg.norm(mapped(solution, points) - points, axis=1).max() < 1e-4 * VOXEL_UM


@pytest.mark.parametrize("velocity", ["stationary", "time-dependent"])
def test_a_known_warp_is_found(case, velocity):
    grid, seen, truth = case
    solution = registered(noisy(seen), grid, velocity=velocity)
    assert solution.fit.motion.momentum.ndim == (4 if velocity == "stationary" else 5)
    error, _ = error_um(solution, grid, truth)
    assert np.median(error) < 0.15 * VOXEL_UM
    assert np.quantile(error, 0.9) < 0.5 * VOXEL_UM


def test_one_step_in_time_is_the_stationary_velocity(case):
    grid, seen, _ = case
    settings = {"levels": 1, "iterations": (3,)}
    stationary = registered(noisy(seen), grid, **settings).fit
    one = registered(noisy(seen), grid, velocity="time-dependent", time_steps=1, **settings).fit
    velocity = stationary.motion.velocity
    np.testing.assert_allclose(one.motion.velocity[0], velocity, atol=1e-4 * np.abs(velocity).max())
    np.testing.assert_allclose(one.to_atlas, stationary.to_atlas, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("stop", "velocity"), [(0, "stationary"), (1, "time-dependent")])
def test_a_fit_that_goes_on_ends_in_the_same_bytes(case, tmp_path, monkeypatch, stop, velocity):
    grid, seen, _ = case
    target = noisy(seen)
    settings = {"resolution_um": 0.8 * VOXEL_UM, "iterations": (2, 2), "velocity": velocity, "find_cuts": False}
    whole = registered(target, grid, **settings)
    checkpoint = Checkpoint(tmp_path, "fit")
    save = Checkpoint.save

    def save_and_stop(self, progress):
        save(self, progress)
        if progress.levels == stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, "save", save_and_stop)
        registered(target, grid, checkpoint=checkpoint, **settings)
    # The pose is not sought again.
    monkeypatch.setattr("cloudreg.registration.fit.find_start", None)
    resumed = registered(target, grid, checkpoint=checkpoint, **settings)
    np.testing.assert_array_equal(resumed.fit.motion.momentum, whole.fit.motion.momentum)
    np.testing.assert_array_equal(resumed.fit.flow.displacement, whole.fit.flow.displacement)
    np.testing.assert_array_equal(resumed.fit.to_atlas, whole.fit.to_atlas)
    np.testing.assert_array_equal(resumed.fit.contrast.coefficients, whole.fit.contrast.coefficients)
    assert resumed.fit.mixture == whole.fit.mixture
    assert resumed.energies == whole.energies
    assert len({energy.level_um for energy in whole.energies}) == 2


def test_a_contrast_that_turns_over_costs_little(case):
    grid, seen, truth = case
    over = np.where(seen > 0.02, 1.1 - 0.8 * seen - 0.9 * (seen - 0.7) ** 2, 0) * np.clip(seen / 0.4, 0, 1)
    error, _ = error_um(registered(noisy(over.astype(np.float32)), grid), grid, truth)
    assert np.median(error) < 0.25 * VOXEL_UM


@pytest.fixture(scope="module")
def whole(case):
    grid, seen, truth = case
    return error_um(registered(noisy(seen), grid), grid, truth)


@pytest.mark.parametrize("lost", [slice(22, 23), slice(22, 24), slice(22, 26)])
def test_lost_slabs_cost_what_was_seen_less_than_a_fifth(case, whole, lost):
    """1, 2 and 4 planes in a row, which hold 5, 10 and 20 % of the tissue."""
    grid, seen, truth = case
    error_of_whole, inside = whole
    damaged = noisy(seen)
    seen_still = np.ones(grid.shape, dtype=bool)
    damaged[lost] = 0
    seen_still[lost] = False
    solution = registered(damaged, grid)
    error, _ = error_um(solution, grid, truth)
    outside = seen_still[inside]
    assert np.median(error[outside]) < 1.2 * np.median(error_of_whole[outside])
    assert solution.problem.level.target.weight[~seen_still].max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("letters", proper_orientations("asr"))
def test_every_orientation_gives_the_same_physical_answer(letters):
    """Anisotropic voxels, odd and even sizes: turned array and letters, the same map within a tenth of a voxel."""
    fine = Grid.from_spacing((63, 30, 51), (150.0, 263.0, 170.0), (-330.0, -400.0, -370.0))
    linear = Rotation.from_rotvec([0.06, -0.05, 0.07]).as_matrix() @ np.diag([1.03, 0.97, 1.02])
    seen, truth = warped(brain(), fine, linear, (150.0, -120.0, 90.0), displacement_field(3))
    target = noisy(seen)
    turn = axes_between("asr", letters)
    axes = np.abs(turn).argmax(axis=1)
    flipped = tuple(k for k in range(3) if turn[k, axes[k]] < 0)
    turned = np.ascontiguousarray(np.flip(target.transpose(*axes), flipped))
    grid = Grid.from_spacing(turned.shape, [fine.voxel_size_um[a] for a in axes])
    there = registered(turned, grid, [(letters, axes_between(letters, "asr"))])
    here = registered(target, fine)
    inside = np.argwhere(
        map_coordinates(brain(), (truth.reshape(-1, 3) / VOXEL_UM).T, order=1).reshape(fine.shape) > 0.3
    )
    moved = inside[:, axes]
    for k in flipped:
        moved[:, k] = grid.shape[k] - 1 - moved[:, k]
    apart = mapped(there, grid.index_to_um(moved)) - mapped(here, fine.index_to_um(inside))
    assert np.median(np.linalg.norm(apart, axis=1)) < 0.1 * VOXEL_UM


@pytest.mark.parametrize("velocity", ["stationary", pytest.param("time-dependent", marks=pytest.mark.slow)])
def test_every_step_lowers_the_objective(case, velocity):
    grid, seen, _ = case
    energies = registered(noisy(seen), grid, velocity=velocity).energies
    assert len(energies) > 10
    assert all(e.gained > 0 for e in energies[:-1])
    for level in {e.level_um for e in energies}:
        steps = [e for e in energies if e.level_um == level and e.step == "velocity"]
        assert steps[-1].gained < 0.3 * steps[0].gained


@pytest.mark.parametrize("velocity", ["stationary", pytest.param("time-dependent", marks=pytest.mark.slow)])
@pytest.mark.parametrize("scale", [None, (1.05,), (1.1, 1.0, 0.95)])
def test_the_map_does_not_fold_and_its_affine_stays_rigid_if_asked(case, scale, velocity):
    from cloudreg.registration.flow import jacobian_determinant

    grid, seen, _ = case
    solution = registered(noisy(seen), grid, affine="rigid", scale=scale, velocity=velocity)
    flow = solution.fit.flow
    assert jacobian_determinant(flow.displacement, flow.spacing).min() > 0
    # The scales of the atlas are those that were asked for, along its axes, whatever the fit.
    axes = np.linalg.inv(solution.fit.to_atlas[:3, :3])
    np.testing.assert_allclose(np.sqrt(np.diag(axes.T @ axes)), np.broadcast_to(scale or 1, 3), rtol=1e-6)
    np.testing.assert_allclose(axes.T @ axes, np.diag(np.diag(axes.T @ axes)), atol=1e-6)


@pytest.mark.parametrize("affine", ["similarity", "scales"])
def test_the_scales_that_a_group_has_are_found(affine):
    """Swollen along the atlas's axes, then turned."""
    true = np.array([1.08, 1.08, 1.08] if affine == "similarity" else [1.12, 0.95, 1.05])
    turn = Rotation.from_rotvec([0.1, -0.08, 0.12]).as_matrix()
    grid = Grid.from_spacing((56, 48, 52), (VOXEL_UM,) * 3, (-900.0, -900.0, -900.0))
    seen, truth = warped(brain(), grid, np.diag(1 / true) @ turn, (150.0, -120.0, 90.0), np.zeros((3, *SHAPE)))
    solution = registered(noisy(seen), grid, affine=affine, deform=False)
    axes = np.linalg.inv(solution.fit.to_atlas[:3, :3])
    np.testing.assert_allclose(np.linalg.norm(axes, axis=0), true, atol=0.01)
    gram = axes.T @ axes
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-9)
    error, _ = error_um(solution, grid, truth)
    assert np.median(error) < 0.2 * VOXEL_UM


def test_anisotropic_voxels_and_odd_sizes_give_the_same_map():
    fine = Grid.from_spacing((63, 30, 51), (150.0, 263.0, 170.0), (-330.0, -400.0, -370.0))
    linear = Rotation.from_rotvec([0.06, -0.05, 0.07]).as_matrix() @ np.diag([1.03, 0.97, 1.02])
    other, other_truth = warped(brain(), fine, linear, (150.0, -120.0, 90.0), displacement_field(3))
    error, _ = error_um(registered(noisy(other), fine), fine, other_truth)
    assert np.median(error) < 0.2 * VOXEL_UM


@pytest.mark.parametrize("letters", ["asr", "pli"])
def test_the_pose_is_found_without_letters(case, letters):
    _, seen, truth = case
    turn = axes_between("asr", letters)
    axes = np.abs(turn).argmax(axis=1)
    signs = turn[np.arange(3), axes]
    flipped = tuple(i for i in range(3) if signs[i] < 0)

    def turned(array):
        return np.ascontiguousarray(np.flip(array.transpose(*axes, *range(3, array.ndim)), flipped))

    target, there = turned(noisy(seen)), turned(truth)
    rotations = [(name, axes_between(name, "asr")) for name in proper_orientations("asr")]
    solution = registered(target, Grid.from_spacing(target.shape, (VOXEL_UM,) * 3), rotations, deform=False)
    assert solution.poses[0].name == letters
    error, _ = error_um(solution, Grid.from_spacing(target.shape, (VOXEL_UM,) * 3), there)
    assert np.median(error) < 1.5 * VOXEL_UM


def test_a_pose_between_the_24_is_found_without_letters():
    turn = Rotation.from_rotvec([0.5, -0.45, 0.55]).as_matrix()
    grid = Grid.from_spacing((60, 60, 60), (VOXEL_UM,) * 3)
    middle = atlas_grid().index_to_um((np.array(SHAPE) - 1) / 2)
    there = grid.index_to_um(np.indices(grid.shape).reshape(3, -1).T)
    truth = (there - grid.index_to_um(np.full(3, 29.5))) @ turn.T + middle
    seen = map_coordinates(brain(), atlas_grid().um_to_index(truth).T, order=1).reshape(grid.shape)
    letters = [(name, axes_between(name, "asr")) for name in proper_orientations("asr")]
    solution = registered(noisy(seen), grid, letters, deform=False)
    assert solution.fit.to_atlas[:3, :3] == pytest.approx(turn, abs=0.03)
    assert solution.poses[1].objective - solution.poses[0].objective > 0.1


def test_half_a_brain_is_known_for_one(case):
    grid, seen, truth = case
    left = truth[..., 2] < (SHAPE[2] - 1) / 2 * VOXEL_UM
    solution = registered(noisy(np.where(left, seen, 0)), grid)
    assert len(solution.cuts) == 1
    assert abs(solution.cuts[0].normal[2]) > 0.9
    inside = (map_coordinates(brain(), (truth.reshape(-1, 3) / VOXEL_UM).T, order=1).reshape(grid.shape) > 0.3) & left
    error = np.linalg.norm(mapped(solution, grid.index_to_um(np.argwhere(inside))) - truth[inside], axis=1)
    assert np.median(error) < 0.3 * VOXEL_UM


def test_a_flat_side_that_the_atlas_has_too_is_no_cut(case):
    grid, seen, truth = case
    middle = (SHAPE[2] - 1) // 2
    half = brain()
    half[:, :, middle:] = 0
    target = noisy(np.where(truth[..., 2] < middle * VOXEL_UM, seen, 0))
    assert len(flat_faces(prepared(target, grid))) > 0
    assert registered(target, grid, template=half, deform=False).cuts == []


def test_a_brain_is_found_in_a_head(monkeypatch):
    seen, grid = head()
    points = atlas_grid().index_to_um(np.argwhere(brain() > 0.3))
    found = registered(noisy(seen), grid)
    assert np.linalg.norm(mapped(found, points) - points, axis=1).max() < 0.2 * VOXEL_UM
    # It's no gift: from middles and volumes that match, the brain is blown up to the head.
    monkeypatch.setattr("cloudreg.registration.pose.implausible", lambda affine: False)
    blown = registered(noisy(seen), grid, deform=False).fit.to_atlas
    assert implausible(blown)


@pytest.mark.parametrize(
    ("scales", "no_brain"),
    [
        ((1, 1, 1), False),
        ((1.1, 1.0, 0.95), False),
        ((1.3, 1.0, 1.0), True),
        ((1.25, 1.25, 1.25), True),
        ((0.8,) * 3, True),
    ],
)
def test_scales_that_clearing_does_not_make_are_implausible(scales, no_brain):
    turn = Rotation.from_rotvec([0.3, -1.2, 0.4]).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(scales)
    assert implausible(affine) == no_brain
