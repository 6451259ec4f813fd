"""A program that compiles what a registration needs: `cloudreg.execution.compiling` starts it beside one.

It does everything once on images of a few voxels, of the types that registrations mostly have, in another order than
the registration, so that each compiles half of what is needed before the first step and takes the other half from
numba's cache: this one begins with the derivatives, which the registration needs after the objective. What it computes
with is imported when it comes to it. Nothing is left but what is in the cache.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cloudreg.execution.compiling import say_when_compiling

if TYPE_CHECKING:
    from cloudreg.execution import Engine
    from cloudreg.io import Volume
    from cloudreg.space import Grid

_SIDE = 16


def main() -> None:
    """Compile."""
    say_when_compiling()
    _derivatives()
    _solver()
    from cloudreg.execution import Engine

    with tempfile.TemporaryDirectory() as folder, Engine(workers=1) as engine:
        _volumes(Path(folder), engine)


def _derivatives() -> None:
    """Sum the derivatives of voxels whose view of the atlas is given: that is left to the registration to compile."""
    from cloudreg.registration.kernels import linearize_run

    image = np.ones((_SIDE,) * 3, dtype=np.float32)
    active, seen = np.arange(image.size), np.zeros((4, image.size), dtype=np.float32)
    still, to_velocity = np.zeros((6, 6, 6, 3), dtype=np.float32), np.hstack([np.eye(3, 4), np.ones((3, 1))])
    contrast, to_nodes, scale = np.zeros((2, 2, 2, 4), dtype=np.float32), np.zeros((3, 2)), np.ones(5, dtype=np.float32)
    mixture = np.ones(8)
    linearize_run(active, seen, True, image, image, still, to_velocity, np.eye(3), contrast, to_nodes, scale, mixture)


def _solver() -> None:
    """Take the steps of a fit."""
    from cloudreg.registration.contrast import initial_contrast
    from cloudreg.registration.flow import integrate, invert, smallest_determinant
    from cloudreg.registration.levels import Image, make_level
    from cloudreg.registration.mixture import Mixture
    from cloudreg.registration.smoothness import Motion, Smoothness
    from cloudreg.registration.solver import Fit, Intensity, Problem
    from cloudreg.space import Grid

    rng = np.random.default_rng(0)
    grid = Grid.from_spacing((_SIDE,) * 3, (100.0,) * 3)
    values = rng.random(grid.shape).astype(np.float32)
    image = Image(values, np.ones_like(values), grid)
    nodes = Grid.from_spacing((6, 6, 6), (400.0,) * 3)
    smoothness = Smoothness(nodes.shape, np.full(3, 400, dtype=np.float32), 500.0)
    still = np.zeros((*nodes.shape, 3), dtype=np.float32)
    flow = integrate(still, smoothness.spacing)
    mixture = Mixture(0.3, 0.5, 0.2, 1.0, 0.0, (0.8, 0.1, 0.1))
    intensity = Intensity(initial_contrast(values, 3, (0.0, 1.0)), mixture)
    fit = Fit(np.eye(4), Motion(still, still), flow, (intensity,))
    problem = Problem(make_level(image, image, 100.0), nodes, smoothness, 1.0)
    flow.adjoint(still)
    smallest_determinant(flow)
    problem.linearize(fit)
    problem.evaluate(fit)
    problem.explain(fit)
    invert(flow.displacement, flow.spacing)


def _volumes(folder: Path, engine: Engine) -> None:
    """Bring an image and labels through a transform, and write them with their pyramids."""
    from cloudreg.atlas import Atlas, Region, Regions
    from cloudreg.regions import region_table
    from cloudreg.space import Grid
    from cloudreg.transforms import DisplacementField, Transform
    from cloudreg.transforms.images import apply_image

    grid = Grid.from_spacing((80, 80, 80), (100.0,) * 3)
    nodes = Grid.from_spacing((4, 4, 4), (3000.0,) * 3)
    still = DisplacementField(nodes, np.zeros((3, 4, 4, 4), dtype=np.float32))
    transform = Transform(np.eye(4), still, still)
    transform.target_to_atlas(np.zeros((1, 3)))
    sources = {}
    for kind, dtype in (("image", np.uint16), ("labels", np.uint32)):
        sources[kind] = source = _volume(str(folder / f"{kind}.ome.zarr"), grid, np.dtype(dtype))
        moved = str(folder / f"moved_{kind}.ome.zarr")
        apply_image(transform, source, grid, moved, to="target", labels=kind == "labels", engine=engine)
    atlas = Atlas("ahead", sources["image"], sources["labels"], "asr", Regions([Region(1, "A", "all")]))
    region_table(transform, atlas, {"image": sources["image"]}, engine=engine)


def _volume(path: str, grid: Grid, dtype: np.dtype[np.generic]) -> Volume:
    from cloudreg.io import create_volume
    from cloudreg.space import Box

    writer = create_volume(path, grid, dtype, levels=1)
    writer.write(Box.whole(grid.shape), np.ones(grid.shape, dtype=dtype))
    return writer.complete()


if __name__ == "__main__":
    main()
