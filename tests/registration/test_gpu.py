"""The GPU's backend, on a GPU where there is one and else in Triton's interpreter."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates, zoom

from brains import brain, image_of
from cloudreg.errors import InputError
from cloudreg.registration.backend import MAIN_MEMORY, backend_for, backend_of
from cloudreg.registration.contrast import initial_contrast
from cloudreg.registration.fit import choose_scales, solve
from cloudreg.registration.flow import Flow, integrate, jacobian_determinant, smallest_determinant
from cloudreg.registration.levels import make_level
from cloudreg.registration.mixture import Mixture
from cloudreg.registration.smoothness import Motion, Smoothness
from cloudreg.registration.solver import Fit, Intensity, Problem
from cloudreg.settings import RegistrationSettings
from cloudreg.space import Grid
from plain_model import explain

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'cloudreg[gpu]'")
if not torch.cuda.is_available():
    # Triton reads it when it's imported.
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="triton is not installed: pip install 'cloudreg[gpu]'")

from cloudreg.registration.gpu.backend import TorchBackend, is_full  # noqa: E402
from cloudreg.registration.gpu.bricks import pack  # noqa: E402

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
BRICK = (4, 4, 8) if GPU else (32, 32, 32)
"""A program takes the interpreter as long whatever its size, so there it is one, but for where several are tested."""

SHAPE = (22, 18, 20)
VOXEL_UM = 400.0
FLOW_SHAPE = (9, 8, 10)
SPACING = np.array([300.0, 350.0, 400.0], dtype=np.float32)


NODES = 256 if GPU else 4096
ELEMENTS = 512 if GPU else 2**15


def on_device(fit, backend):
    flow = Flow(fit.flow.spacing, tuple(backend.send(u) for u in fit.flow.steps))
    motion = Motion(backend.send(fit.motion.momentum), backend.send(fit.motion.velocity))
    return replace(fit, motion=motion, flow=flow)


@pytest.fixture
def backend():
    return TorchBackend(DEVICE, brick=BRICK, nodes=NODES, elements=ELEMENTS)


@pytest.mark.parametrize("shape", [(13, 8, 21), (3, 2, 40)])
def test_images_are_filtered_as_on_the_cpu(backend, shape):
    rng = np.random.default_rng(7)
    image = rng.standard_normal(shape).astype(np.float32)
    for surroundings, sigmas, truncate in (("reflect", (1.0, 1.0, 1.0), 4.0), ("constant", (0.7, 2.0, 1.3), 3.0)):
        ours = MAIN_MEMORY.smoothed(image, sigmas, surroundings, truncate)
        theirs = backend.smoothed(backend.send(image), sigmas, surroundings, truncate)
        np.testing.assert_allclose(backend.fetch(theirs), ours, atol=2e-6)
    ours = MAIN_MEMORY.spline_coefficients(image, 0.3)
    theirs = backend.spline_coefficients(backend.send(image), 0.3)
    np.testing.assert_allclose(backend.fetch(theirs), ours, atol=2e-5)
    step = np.eye(4)
    step[:3] += 0.05 * rng.standard_normal((3, 4))
    step[:3, 3] = -0.5 * rng.random(3)
    ours = MAIN_MEMORY.resampled(image, step, shape)
    theirs = backend.resampled(backend.send(image), step, shape)
    np.testing.assert_allclose(backend.fetch(theirs), ours, atol=1e-5)
    assert 0.1 < np.mean(ours != 0) < 0.98
    mask = image > 2
    theirs = backend.near(backend.send(mask), (2, 0, 3))
    np.testing.assert_array_equal(backend.fetch(theirs), MAIN_MEMORY.near(mask, (2, 0, 3)))


def test_levels_made_on_the_device_are_those_of_the_main_memory(backend):
    target, atlas = tiny_pair()
    weight = target.weight.copy()
    weight[:2], weight[5, 3:9] = 0, 0.25
    target = replace(target, weight=weight)
    turn = np.eye(4)
    turn[:3, 3] = 700.0
    for voxel_um in (VOXEL_UM, 2 * VOXEL_UM):
        here = make_level(target, atlas, voxel_um).near_the_brain(turn, 400.0)
        there = make_level(target.on(backend), atlas.on(backend), voxel_um).near_the_brain(turn, 400.0)
        assert isinstance(there.active, torch.Tensor)
        back = there.fetched()
        np.testing.assert_array_equal(back.active, here.active)
        np.testing.assert_allclose(back.atlas, here.atlas, atol=1e-5)
        np.testing.assert_allclose(back.target.values, here.target.values, atol=1e-6)
        np.testing.assert_array_equal(back.target.weight, here.target.weight)
        lost = np.indices(here.target.grid.shape)[1] > 4
        np.testing.assert_array_equal(there.without(lost).fetched().active, here.without(lost).active)
    lost = np.indices(SHAPE)[0] > 7
    np.testing.assert_array_equal(target.on(backend).without([lost]).fetched().weight, target.without([lost]).weight)


def test_images_too_large_to_be_prepared_there_are_prepared_in_the_main_memory(backend):
    lines = []
    small = TorchBackend(DEVICE, memory_bytes=10_000, report=lines.append)
    assert small.home(3000) is small and not lines
    assert small.home(4000) is MAIN_MEMORY
    assert "prepared in the main memory" in lines[0] and "\n" not in lines[0]


@pytest.fixture(scope="module")
def case():
    """A fit away from the optimum: turned, displaced, with a contrast that varies and turns over; parts unobserved."""
    rng = np.random.default_rng(5)
    seen = zoom(brain(), 0.5, order=1)
    atlas = image_of(seen, voxel_um=(VOXEL_UM,) * 3)
    weight = (rng.random(SHAPE) > 0.1) * rng.uniform(0.3, 1, SHAPE)
    weight[:3] = 0
    values = seen[:, ::-1, :] * 0.7 + 0.05 * rng.standard_normal(SHAPE)
    target = image_of(values, (-300.0, 100.0, 50.0), (VOXEL_UM,) * 3, weight=weight)
    level = make_level(target, atlas, VOXEL_UM)
    grid = Grid.from_spacing((9, 8, 9), (1200.0,) * 3, (-800.0, -800.0, -800.0))
    spacing = np.full(3, 1200, dtype=np.float32)
    smoothness = Smoothness(grid.shape, spacing, 1900.0)
    rough = Smoothness(grid.shape, spacing, 1900.0, power=1)
    field = rough.motion(rng.standard_normal((*grid.shape, 3)).astype(np.float32)).velocity
    field = np.ascontiguousarray(field * 300 / np.abs(field).max(), dtype=np.float32)
    contrast = initial_contrast(level.atlas[level.atlas > 0.05], 3, (0.0, 0.8))
    contrast = contrast.on_nodes(SHAPE, np.full(3, 8.0))
    bumpy = contrast.coefficients + 0.1 * rng.standard_normal(contrast.coefficients.shape)
    contrast = replace(contrast, coefficients=bumpy.astype(np.float32))
    turn = np.eye(4)
    turn[:3, :3] += 0.05 * rng.standard_normal((3, 3))
    turn[:3, 3] = [150.0, -80.0, 40.0]
    mixture = Mixture(0.25, 0.6, 0.3, 1.1, -0.05, (0.75, 0.15, 0.1))
    fit = Fit(turn, Motion(0 * field, 0 * field), Flow(spacing, (field,)), (Intensity(contrast, mixture),))
    return Problem(level, grid, smoothness, 1.0), fit


def test_evaluation_agrees_with_the_cpu_and_with_the_plain_reference(case, backend):
    problem, fit = case
    here, there = problem.evaluate(fit), problem.evaluate(on_device(fit, backend))
    assert there.data == pytest.approx(here.data, rel=1e-6)
    np.testing.assert_allclose(there.statistics[0], here.statistics[0], rtol=1e-5)
    np.testing.assert_allclose(
        backend.fetch(there.moments[0]), here.moments[0], rtol=1e-4, atol=1e-6 * here.moments[0].max()
    )
    explanation = explain(problem.level, problem.velocity_grid, fit)
    plain = -np.sum(problem.level.target.weight * explanation.log_likelihood, dtype=float)
    assert there.data == pytest.approx(plain, rel=2e-5)


def test_a_contrast_is_fitted_on_the_device_as_on_the_cpu(case, backend):
    problem, fit = case
    ours, theirs = (problem.evaluate(f).moments[0] for f in (fit, on_device(fit, backend)))
    for smoothing in (None, np.full(3, 1.2)):
        expected = fit.contrast.refitted(ours, smoothing).coefficients
        found = fit.contrast.refitted(theirs, smoothing)
        assert isinstance(found.coefficients, torch.Tensor)
        np.testing.assert_allclose(found.fetched().coefficients, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("affine", [False, True])
def test_derivatives_agree_with_the_cpu(case, backend, affine):
    problem, fit = case
    here, there = problem.linearize(fit, affine=affine), problem.linearize(on_device(fit, backend), affine=affine)
    assert there.data == pytest.approx(here.data, rel=1e-6)
    for name in ("gradient", "hessian"):
        ours, theirs = getattr(here, name), backend.fetch(getattr(there, name))
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=2e-6 * np.abs(ours).max())
    assert here.affine_hessian.any() == affine
    for name in ("affine_gradient", "affine_hessian"):
        ours, theirs = getattr(here, name), getattr(there, name)
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=2e-6 * np.abs(ours).max())


def test_several_channels_add_up_on_the_device(case, backend):
    problem, fit = case
    two = Problem(problem.level, problem.velocity_grid, problem.smoothness, 1.0, more=[problem.level])
    there = on_device(replace(fit, intensities=fit.intensities * 2), backend)
    once, twice = problem.linearize(on_device(fit, backend)), two.linearize(there)
    assert twice.data == 2 * once.data
    np.testing.assert_array_equal(backend.fetch(twice.gradient), 2 * backend.fetch(once.gradient))
    assert len(two.evaluate(there).moments) == 2


def test_no_active_voxel_gives_nothing(case, backend):
    problem, fit = case
    none = problem.without(np.ones(SHAPE, dtype=bool))
    there = on_device(fit, backend)
    assert none.evaluate(there).data == 0
    assert not backend.fetch(none.linearize(there).gradient).any()


def test_sums_are_the_same_however_the_target_is_cut(case):
    """Integers add up alike in any order: what differs is the rounding inside a brick alone."""
    problem, fit = case
    results = []
    for brick in ((16, 16, 32), (32, 16, 16)):
        backend = TorchBackend(DEVICE, brick=brick if not GPU else (4, 4, 8))
        there = on_device(fit, backend)
        results.append(backend.fetch(problem.evaluate(there).moments[0]))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-7 * np.abs(results[0]).max())


def test_bricks_hold_every_active_voxel_once_in_its_place():
    rng = np.random.default_rng(0)
    shape = (7, 9, 11)
    values = rng.standard_normal(shape).astype(np.float32)
    weight = rng.uniform(0.1, 1, shape).astype(np.float32)
    values[0, 0, 0] = np.nan
    active = np.flatnonzero((rng.random(shape) > 0.7) & np.isfinite(values))
    expected = np.zeros(shape)
    expected.flat[active] = weight.flat[active]
    for piece_bytes in (300, 10**9):
        main = torch.device("cpu")
        bricks = pack(values, weight, active, (2, 4, 4), device=main, keep=main, piece_bytes=piece_bytes)
        assert len(bricks.pieces) == 1 or piece_bytes == 300
        found, greys = np.zeros((8, 12, 12)), np.zeros((8, 12, 12))
        for piece in bricks.pieces:
            for corner, grey, w in zip(*(t.numpy() for t in (piece.corners, piece.values, piece.weights)), strict=True):
                place = tuple(slice(c, c + n) for c, n in zip(corner, (2, 4, 4), strict=True))
                found[place] += w.reshape(2, 4, 4)
                greys[place] += grey.reshape(2, 4, 4)
        np.testing.assert_array_equal(found[:7, :9, :11], expected.astype(np.float32))
        assert not found[7:].any() and not found[:, 9:].any() and not found[..., 11:].any()
        np.testing.assert_array_equal(greys[:7, :9, :11], np.where(expected > 0, values, 0))
        assert bricks.count == active.size
        assert bricks.brightest == np.abs(values.flat[active]).max()


@pytest.fixture(scope="module")
def velocity():
    rng = np.random.default_rng(1)
    rough = Smoothness(FLOW_SHAPE, SPACING, 700.0, power=1)
    field = rough.motion(rng.standard_normal((*FLOW_SHAPE, 3)).astype(np.float32)).velocity
    return (field * 400 / np.abs(field).max()).astype(np.float32)


def test_a_flow_and_its_derivatives_agree_with_the_cpu(velocity, backend):
    rng = np.random.default_rng(2)
    change = rng.standard_normal(velocity.shape).astype(np.float32)
    flow, there = integrate(velocity, SPACING), integrate(backend.send(velocity), SPACING)
    assert len(flow.steps) == len(there.steps)
    np.testing.assert_allclose(backend.fetch(there.displacement), flow.displacement, rtol=1e-5, atol=1e-3)
    for name in ("derivative", "adjoint", "half_way_back"):
        ours, theirs = getattr(flow, name)(change), getattr(there, name)(backend.send(change))
        np.testing.assert_allclose(backend.fetch(theirs), ours, rtol=1e-4, atol=1e-5)
    exact = jacobian_determinant(flow.displacement, SPACING).min()
    assert smallest_determinant(there) == pytest.approx(exact, rel=1e-5)
    assert smallest_determinant(flow) == exact


def test_the_adjoint_is_the_transpose_of_the_derivative(velocity, backend):
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, *velocity.shape)).astype(np.float32)
    flow = integrate(backend.send(velocity), SPACING)
    left = np.sum(backend.fetch(flow.derivative(backend.send(a))).astype(float) * b)
    right = np.sum(a.astype(float) * backend.fetch(flow.adjoint(backend.send(b))))
    assert left == pytest.approx(right, rel=1e-5)


def test_a_flow_in_time_and_its_derivatives_agree_with_the_cpu(velocity, backend):
    rng = np.random.default_rng(2)
    velocities = np.stack([velocity, velocity[::-1], -velocity[:, ::-1]]) / np.float32(np.sqrt(3))
    change = rng.standard_normal(velocities.shape).astype(np.float32)
    flow, there = integrate(velocities, SPACING), integrate(backend.send(velocities), SPACING)
    np.testing.assert_allclose(backend.fetch(there.displacement), flow.displacement, rtol=1e-5, atol=1e-3)
    for name, field in (("derivative", change), ("adjoint", change[0]), ("half_way_back", change[0])):
        ours, theirs = getattr(flow, name)(field), getattr(there, name)(backend.send(field))
        np.testing.assert_allclose(backend.fetch(theirs), ours, rtol=1e-4, atol=2e-5)
    np.testing.assert_array_equal(there.fetched().displacement, backend.fetch(there.displacement))
    left = np.sum(backend.fetch(there.derivative(backend.send(change))).astype(float) * change[1])
    right = np.sum(change.astype(float) * backend.fetch(there.adjoint(backend.send(change[1]))))
    assert left == pytest.approx(right, rel=1e-5)


def test_the_curvature_of_a_velocity_agrees_with_the_cpu(velocity, backend):
    hessian = list(np.random.default_rng(6).standard_normal((6, *FLOW_SHAPE)).astype(np.float32))
    momentum = velocity[::-1]
    ours = MAIN_MEMORY.curved(hessian, velocity, 0.3, momentum)
    there = [backend.send(field) for field in (*hessian, velocity, momentum)]
    theirs = backend.curved(there[:6], there[6], 0.3, there[7])
    np.testing.assert_allclose(backend.fetch(theirs), ours, rtol=1e-5, atol=1e-3)


def test_scattering_is_the_same_each_time(velocity, backend):
    force = backend.send(np.random.default_rng(4).standard_normal(velocity.shape).astype(np.float32))
    u = backend.send(velocity)
    once, again = (backend.fetch(backend.scatter(u, force, SPACING)) for _ in range(2))
    np.testing.assert_array_equal(once, again)


def test_the_prior_agrees_with_the_cpu(velocity, backend):
    smoothness = Smoothness(FLOW_SHAPE, SPACING, 700.0)
    here, there = smoothness.motion(velocity), smoothness.motion(backend.send(velocity))
    np.testing.assert_allclose(there.fetched().velocity, here.velocity, atol=1e-4 * np.abs(here.velocity).max())
    fine = Smoothness((18, 16, 20), SPACING / 2, 700.0)
    refined, expected = fine.refined(there, smoothness).fetched(), fine.refined(here, smoothness)
    np.testing.assert_array_equal(refined.momentum, expected.momentum)


def test_a_full_memory_sends_the_target_in_pieces_and_says_so(case):
    problem, fit = case
    expected = problem.evaluate(fit)
    brick = (8, 8, 8)
    one = 8 * int(np.prod(brick)) + 12
    level = problem.level
    pieces = pack(
        level.target.values, level.target.weight, level.active, brick,
        device=torch.device("cpu"), keep=torch.device("cpu"), piece_bytes=2**30,
    ).pieces  # fmt: skip

    def backend(room, lines):
        limit = level.atlas.nbytes + 1024 + room
        return TorchBackend(DEVICE, brick=brick, nodes=NODES, report=lines.append, memory_bytes=limit)

    # All bricks; a quarter of the active voxels' and the piece before it; single bricks two by two.
    for room, visits in ((pieces[0].nbytes, None), (6 * one, 4), (2 * one, 8)):
        lines = []
        there = problem.evaluate(on_device(fit, backend(room, lines)))
        assert there.data == pytest.approx(expected.data, rel=1e-6)
        np.testing.assert_allclose(there.statistics[0], expected.statistics[0], rtol=1e-5)
        assert (f"is sent in {visits} or more pieces" in lines[-1]) if visits else not lines
    with pytest.raises(InputError, match="even with the target sent in small pieces"):
        problem.evaluate(on_device(fit, backend(100, [])))


def test_a_template_too_large_for_the_gpu_is_refused_in_a_line(case):
    problem, fit = case
    backend = TorchBackend(DEVICE, brick=BRICK, nodes=NODES, memory_bytes=problem.level.atlas.nbytes // 2)
    with pytest.raises(InputError, match=r"template on the GPU.*--device cpu") as caught:
        problem.evaluate(on_device(fit, backend))
    assert "\n" not in str(caught.value)


def test_what_was_sent_is_forgotten_with_the_array():
    backend = TorchBackend(DEVICE, memory_bytes=2**20)
    array = np.ones(200_000, dtype=np.float32)
    assert backend.constant(array) is backend.constant(array)
    with pytest.raises(torch.OutOfMemoryError):
        backend.constant(np.zeros(200_000, dtype=np.float32))
    del array
    backend.constant(np.zeros(200_000, dtype=np.float32))


def test_an_allocator_that_refuses_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8, device=DEVICE)
    assert is_full(caught.value)
    assert not is_full(RuntimeError("shape mismatch"))


def tiny_pair():
    """A template and a target that is it, turned and displaced."""
    rng = np.random.default_rng(8)
    values = zoom(brain(), 0.5, order=1)
    bend = np.stack([gaussian_filter(rng.standard_normal(SHAPE), 3.0) for _ in range(3)])
    bend *= 0.8 / np.abs(bend).max()
    index = np.indices(SHAPE).reshape(3, -1)
    middle = (np.array(SHAPE)[:, None] - 1) / 2
    turn = np.eye(3) + 0.04 * rng.standard_normal((3, 3))
    moved = turn @ (index - middle) + middle + 0.4 + bend.reshape(3, -1)
    seen = map_coordinates(values, moved, order=1).reshape(SHAPE) + 0.01 * rng.standard_normal(SHAPE)
    return image_of(seen, voxel_um=(VOXEL_UM,) * 3), image_of(values, voxel_um=(VOXEL_UM,) * 3)


def solved(backend, velocity):
    target, atlas = tiny_pair()
    settings = RegistrationSettings(
        resolution_um=VOXEL_UM, levels=1, iterations=(1,), velocity_spacing_um=2000, kernel_um=1500, find_cuts=False,
        velocity=velocity, time_steps=2,
    )  # fmt: skip
    scales = choose_scales(atlas, target.grid, atlas.grid, settings)
    return solve(target, atlas, [], settings, scales=scales, initial=np.eye(4), backend=backend)


@pytest.mark.parametrize("velocity", ["stationary", pytest.param("time-dependent", marks=pytest.mark.slow)])
def test_the_solver_finds_the_same_map_within_a_tenth_of_a_voxel(velocity):
    backend = TorchBackend(DEVICE, brick=BRICK, nodes=NODES, elements=ELEMENTS)
    here, there = solved(MAIN_MEMORY, velocity), solved(backend, velocity)
    points = np.argwhere(tiny_pair()[1].values > 0.2) * VOXEL_UM

    def mapped(solution):
        fit = solution.fit
        straight = points @ fit.to_atlas[:3, :3].T + fit.to_atlas[:3, 3]
        node = solution.velocity_grid.um_to_index(straight).T
        field = fit.flow.displacement
        return straight + np.stack([map_coordinates(field[..., k], node, order=1) for k in range(3)], axis=1)

    assert isinstance(there.fit.motion.momentum, np.ndarray)
    assert np.linalg.norm(mapped(here) - points, axis=1).max() > 0.5 * VOXEL_UM
    assert np.abs(here.fit.flow.displacement).max() > 10
    assert np.linalg.norm(mapped(here) - mapped(there), axis=1).max() < 0.1 * VOXEL_UM
    assert len(here.energies) == len(there.energies)


def test_arrays_know_their_backend(backend):
    assert backend_of(np.zeros(3)) is MAIN_MEMORY
    assert backend_of(backend.send(np.zeros((2, 2, 2), dtype=np.float32))) is backend
    assert backend_for("cpu") is MAIN_MEMORY


@pytest.mark.skipif(GPU, reason="there is a CUDA device")
def test_a_machine_without_cuda_says_so():
    with pytest.raises(InputError, match=r"expected a CUDA device.*--device cpu"):
        backend_for("cuda")


COMPILE_FOR_H100 = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cloudreg.registration.gpu import images, kernels

voxels, nodes = {"ORDER": 3, "BZ": 4, "BY": 4, "BX": 8}, {"BLOCK": 256}
types = {"corners": "*i32", "parameters": "*fp64", "unit": "*fp64", "moments": "*i64", "nodes": "*i64"}
types |= {a + b: "fp32" if a == "h" else "i32" for a in "mnkh" for b in "zyx"}
for kernel, constants, more in (
    (kernels.evaluate, voxels | {"ROWS": 16}, {}),
    (kernels.linearize, voxels | {"AFFINE": False}, {}),
    (kernels.curve, nodes, {"weight": "fp32", "count": "i32"}),
    (kernels.gather, nodes, {}),
    (kernels.scatter, nodes, {"out": "*i64"}),
    (kernels.push, nodes, {}),
    (kernels.pull, nodes, {}),
    (kernels.smallest_determinant, nodes, {}),
    (images._correlate, {"BEYOND": 1, "BLOCK": 512}, dict.fromkeys(("size", "count", "stride", "reach"), "i32")),
    (images._resample, {"BLOCK": 512}, {"step": "*fp64"} | dict.fromkeys(("size", "oy", "ox"), "i32")),
):
    known = dict.fromkeys(constants, "constexpr") | types | more
    signature = {name: known.get(name, "*fp32") for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    compiled = triton.compile(ASTSource(kernel, signature, constexprs=values), target=GPUTarget("cuda", 90, 32))
    assert ".target sm_90" in compiled.asm["ptx"] and compiled.asm["cubin"][1:4] == b"ELF"
    print(kernel.__name__)
"""


def test_kernels_compile_for_an_h100(tmp_path):
    """The interpreter takes more than the compiler does; compiling needs no GPU."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE_FOR_H100], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) == 10
