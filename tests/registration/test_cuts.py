import numpy as np
import pytest

from cloudreg.registration.cuts import flat_faces
from cloudreg.registration.levels import Image
from cloudreg.space import Grid

GRID = Grid.from_spacing((50, 44, 46), (200.0, 210.0, 190.0), (-3000.0, 500.0, 70.0))


def ball(keep=lambda um: np.ones(um.shape[:-1], dtype=bool)):
    """A ball of tissue, where ``keep`` leaves some."""
    um = GRID.index_to_um(np.indices(GRID.shape).reshape(3, -1).T).reshape(*GRID.shape, 3)
    middle = GRID.index_to_um((np.array(GRID.shape) - 1) / 2)
    values = ((np.linalg.norm(um - middle, axis=-1) < 3600) & keep(um - middle)).astype(np.float32)
    return Image(values, np.ones_like(values), GRID), middle


def test_a_whole_ball_has_no_flat_face():
    image, _ = ball()
    assert flat_faces(image) == []


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_a_cut_is_found_where_it_is_even_on_a_slant(axis, side):
    normal = np.full(3, 0.2)
    normal[axis] = side
    normal /= np.linalg.norm(normal)
    image, middle = ball(lambda um: um @ normal < 700)
    cut = flat_faces(image)[0]
    assert cut.flatness > 0.6
    assert cut.normal @ normal > np.cos(np.deg2rad(3))
    assert abs(cut.offset_um - cut.normal @ middle - 700) < 200
    beyond = cut.beyond(GRID)
    assert np.mean(image.values[beyond]) < 0.2
    assert np.count_nonzero(image.values[~beyond]) > 0.85 * np.count_nonzero(image.values)


def test_the_end_of_the_volume_is_no_cut():
    image, _ = ball()
    half = Image(image.values[:25], image.weight[:25], Grid.from_spacing((25, 44, 46), GRID.voxel_size_um))
    assert flat_faces(half) == []
