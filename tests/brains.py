"""A small blob of a brain with texture, and ways to warp it."""

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

from cloudreg.registration.levels import Image
from cloudreg.registration.prepare import prepare
from cloudreg.space import Grid

VOXEL_UM = 200.0
SHAPE = (44, 36, 40)


def brain(shape=SHAPE, seed=0):
    """An asymmetric textured blob, 0 outside, about 0.3 to 1 inside."""
    rng = np.random.default_rng(seed)
    z, y, x = (np.linspace(-1, 1, n) for n in shape)
    z, y, x = np.meshgrid(z, y, x, indexing="ij")
    inside = ((z / 0.75) ** 2 + ((y - 0.15 * z) / 0.66) ** 2 + (x / 0.7) ** 2 < 1) & ~(
        (np.abs(z + 0.3) < 0.12) & (np.abs(x) < 0.3) & (y > 0.2)
    )
    texture = gaussian_filter(rng.standard_normal(shape), 1.8)
    texture /= texture.std()
    image = np.where(inside, 0.65 + 0.13 * np.clip(texture, -2.5, 2.5), 0)
    return gaussian_filter(image, 0.6).astype(np.float32)


def image_of(values, origin_um=(0.0, 0.0, 0.0), voxel_um=(VOXEL_UM,) * 3, weight=None):
    grid = Grid.from_spacing(values.shape, voxel_um, origin_um)
    weight = np.ones_like(values, dtype=np.float32) if weight is None else weight.astype(np.float32)
    return Image(np.ascontiguousarray(values, dtype=np.float32), weight, grid)


def displacement_field(seed, peak_um=350.0, smooth=4.5, shape=SHAPE):
    """A smooth random displacement (3, z, y, x) in um; the map is invertible for these sizes."""
    rng = np.random.default_rng(seed)
    field = np.stack([gaussian_filter(rng.standard_normal(shape), smooth) for _ in range(3)])
    return field * peak_um / np.sqrt((field**2).sum(axis=0)).max()


def true_map(points_um, linear, shift_um, field):
    """Target um (n, 3) to atlas um (n, 3): an affine about the middle, then the displacement."""
    middle = (np.array(SHAPE) - 1) / 2 * VOXEL_UM
    straight = (points_um - middle - shift_um) @ linear.T + middle
    index = (straight / VOXEL_UM).T
    return straight + np.stack([map_coordinates(c, index, order=3, mode="nearest") for c in field], axis=1)


def warped(values, grid, linear, shift_um, field):
    """The atlas as the target grid would see it, and the true atlas position of each target voxel."""
    index = np.argwhere(np.ones(grid.shape, dtype=bool))
    truth = true_map(grid.index_to_um(index), linear, np.asarray(shift_um), field)
    seen = map_coordinates(values, (truth / VOXEL_UM).T, order=3, mode="constant")
    return seen.reshape(grid.shape).astype(np.float32), truth.reshape(*grid.shape, 3)


def regions(count=60, seed=1):
    """A blob's regions, (z, y, x) numbered from 1, 0 outside: what is nearest to one of so many places."""
    inside = brain() > 0.3
    places = np.argwhere(inside)
    places = places[np.random.default_rng(seed).choice(len(places), count, replace=False)]
    _, nearest = cKDTree(places).query(np.argwhere(inside))
    numbers = np.zeros(SHAPE, dtype=np.int32)
    numbers[inside] = 1 + nearest
    return numbers


def stain(numbers, seed=3):
    """An image of regions each of which has a grey of its own."""
    greys = np.random.default_rng(seed).uniform(0.35, 1, numbers.max() + 1)
    greys[0] = 0
    return gaussian_filter(greys[numbers], 0.6).astype(np.float32)


def head(margin=14):
    """A brain with skull, skin and neck around it, and its place: as bright as the brain, and off its middle."""
    values = np.pad(brain(), margin)
    offset = np.moveaxis(np.indices(values.shape), 0, -1) - (np.array(values.shape) - 1) / 2
    half = np.array(SHAPE) / 2
    radius = np.linalg.norm(offset / half, axis=-1)
    neck = np.linalg.norm(offset - np.array([-8, half[1] + 6, 0]), axis=-1) < 16
    texture = gaussian_filter(np.random.default_rng(5).standard_normal(values.shape), 1.8)
    tissue = np.where(((radius > 0.9) & (radius < 1.25)) | neck, 0.7 + 0.1 * texture / texture.std(), 0)
    close = gaussian_filter((values > 0.1).astype(float), 2.5) > 0.05
    grid = Grid.from_spacing(values.shape, (VOXEL_UM,) * 3, (-margin * VOXEL_UM,) * 3)
    return np.where(close, values, tissue).astype(np.float32), grid


def scanned_head(margin=18):
    """A head as X-rays show it, and its place: the brain as flat as flesh, in bright bone, in flesh with a neck."""
    inside = np.pad(brain(), margin) > 0.3
    offset = np.moveaxis(np.indices(inside.shape), 0, -1) - (np.array(inside.shape) - 1) / 2
    half = np.array(SHAPE) / 2
    flesh = np.linalg.norm(offset / half - np.array([0.15, 0.2, 0.0]), axis=-1) < 1.45
    neck = np.linalg.norm(offset - np.array([-8, half[1] + 8, 0]), axis=-1) < 16
    bone = binary_dilation(inside, iterations=3) & ~inside
    values = np.where(bone, 1.6, np.where(flesh | neck, 0.8, 0.0))
    grid = Grid.from_spacing(inside.shape, (VOXEL_UM,) * 3, (-margin * VOXEL_UM,) * 3)
    return gaussian_filter(values, 0.6).astype(np.float32), grid


def prepared(values, grid, name="target", missing_data=True):
    return prepare(values, (values != 0).astype(np.float32), grid, name=name, missing_data=missing_data)


def atlas_grid():
    return Grid.from_spacing(SHAPE, (VOXEL_UM,) * 3)


def mapped(solution, points_um):
    fit = solution.fit
    straight = points_um @ fit.to_atlas[:3, :3].T + fit.to_atlas[:3, 3]
    node = solution.velocity_grid.um_to_index(straight).T
    return straight + np.stack(
        [map_coordinates(fit.flow.displacement[..., k], node, order=1, mode="nearest") for k in range(3)], axis=1
    )


def error_um(solution, grid, truth):
    inside = map_coordinates(brain(), (truth.reshape(-1, 3) / VOXEL_UM).T, order=1).reshape(grid.shape) > 0.3
    points = grid.index_to_um(np.argwhere(inside))
    return np.linalg.norm(mapped(solution, points) - truth[inside], axis=1), inside
