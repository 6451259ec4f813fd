"""A program that compiles what a registration needs: `cloudreg.execution.compiling` starts it beside one.

It does everything once on images of a few voxels, of the types that registrations mostly have, but for the
derivatives: these take longest, and the registration compiles them itself at once. The loops over the nodes come first,
so that what the derivatives and the objective share is in the cache when it's needed. What is compiled is in numba's
cache afterwards; nothing else is left.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from cloudreg.atlas import Atlas, Region, Regions
from cloudreg.execution import Engine
from cloudreg.io import create_volume
from cloudreg.io.volume import Volume
from cloudreg.regions import region_table
from cloudreg.registration.contrast import initial_contrast
from cloudreg.registration.flow import integrate, invert, smallest_determinant
from cloudreg.registration.levels import Image, make_level
from cloudreg.registration.mixture import Mixture
from cloudreg.registration.smoothness import Motion, Smoothness
from cloudreg.registration.solver import Fit, Intensity, Problem
from cloudreg.space import Box, Grid
from cloudreg.transforms import DisplacementField, Transform
from cloudreg.transforms.images import apply_image

_SIDE = 16


def main() -> None:
    """Compile."""
    _solver()
    with tempfile.TemporaryDirectory() as folder, Engine(workers=1) as engine:
        _volumes(Path(folder), engine)


def _volumes(folder: Path, engine: Engine) -> None:
    """Bring an image and labels through a transform, and write them with their pyramids."""
    grid = Grid.from_spacing((80, 80, 80), (100.0,) * 3)
    nodes = Grid.from_spacing((4, 4, 4), (3000.0,) * 3)
    still = DisplacementField(nodes, np.zeros((3, 4, 4, 4), dtype=np.float32))
    transform = Transform(np.eye(4), still, still)
    transform.target_to_atlas(np.zeros((1, 3)))
    sources = {}
    for kind, dtype in (("labels", np.uint32), ("image", np.uint16)):
        sources[kind] = source = _volume(str(folder / f"{kind}.ome.zarr"), grid, np.dtype(dtype))
        moved = str(folder / f"moved_{kind}.ome.zarr")
        apply_image(transform, source, grid, moved, to="target", labels=kind == "labels", engine=engine)
    atlas = Atlas("ahead", sources["image"], sources["labels"], "asr", Regions([Region(1, "A", "all")]))
    region_table(transform, atlas, {"image": sources["image"]}, engine=engine)


def _volume(path: str, grid: Grid, dtype: np.dtype[np.generic]) -> Volume:
    writer = create_volume(path, grid, dtype, levels=1)
    writer.write(Box.whole(grid.shape), np.ones(grid.shape, dtype=dtype))
    return writer.complete()


def _solver() -> None:
    """Take the steps of a fit."""
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
    invert(flow.displacement, flow.spacing, flow.displacement)
    problem.evaluate(fit)
    problem.explain(fit)


if __name__ == "__main__":
    main()
