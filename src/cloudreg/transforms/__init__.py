"""The map between atlas and target, and what it is applied to: arrays, volumes, points."""

from cloudreg.transforms.compose import compose
from cloudreg.transforms.displacement import DisplacementField, jacobian_determinant
from cloudreg.transforms.export import export_transform
from cloudreg.transforms.frames import Frame
from cloudreg.transforms.images import apply_image
from cloudreg.transforms.initial import affine_between_middles, load_initial_affine, read_itk_affine, turned
from cloudreg.transforms.points import apply_points_file, read_all_points, read_points
from cloudreg.transforms.resample import VoxelMap, resample
from cloudreg.transforms.transform import Side, Transform, inverse_consistency_um, load_affine, save_affine

__all__ = [
    "DisplacementField",
    "Frame",
    "Side",
    "Transform",
    "VoxelMap",
    "affine_between_middles",
    "apply_image",
    "apply_points_file",
    "compose",
    "export_transform",
    "inverse_consistency_um",
    "jacobian_determinant",
    "load_affine",
    "load_initial_affine",
    "read_all_points",
    "read_itk_affine",
    "read_points",
    "resample",
    "save_affine",
    "turned",
]
