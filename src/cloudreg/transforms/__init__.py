"""The map between atlas and target, and what it is applied to: arrays, volumes, points."""

from cloudreg.transforms.displacement import DisplacementField, jacobian_determinant
from cloudreg.transforms.images import apply_image
from cloudreg.transforms.points import apply_points_file, read_all_points, read_points
from cloudreg.transforms.resample import VoxelMap, resample
from cloudreg.transforms.transform import Side, Transform, inverse_consistency_um, load_affine, save_affine

__all__ = [
    "DisplacementField",
    "Side",
    "Transform",
    "VoxelMap",
    "apply_image",
    "apply_points_file",
    "inverse_consistency_um",
    "jacobian_determinant",
    "load_affine",
    "read_all_points",
    "read_points",
    "resample",
    "save_affine",
]
