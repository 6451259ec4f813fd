"""Displacement fields as NIfTI files, in the convention of ANTs.

A warp is a five-dimensional image (x, y, z, 1, component) with the vector intent; its header places it in RAS
millimetres as all NIfTI headers do, and its components are LPS millimetres. Of several ``-t`` antsApplyTransforms
does the first to the points of the image that is made, and the next to what comes out.

References
----------
.. [1] https://nifti.nimh.nih.gov/nifti-1
.. [2] https://github.com/ANTsX/ANTs/wiki, "ITK affine transform conversions" and "Forward and inverse warps"
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cloudreg.transforms.displacement import DisplacementField
from cloudreg.transforms.frames import Frame, in_lps, itk_geometry
from cloudreg.transforms.itk import write_affines
from cloudreg.transforms.transform import Transform

_RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0])


def write_warps(transform: Transform, atlas: Frame, target: Frame, folder: Path) -> dict[str, str]:
    """Write a warp and an affine a direction; return what each file does."""
    lps = in_lps(transform, atlas, target)
    _write_warp(lps.to_atlas, folder / "warp_atlas_images_to_target.nii.gz")
    _write_warp(lps.to_target, folder / "warp_target_images_to_atlas.nii.gz")
    return {
        "warp_atlas_images_to_target.nii.gz": "brings atlas images onto the target after the affine: "
        "antsApplyTransforms -t affine_atlas_images_to_target.tfm -t warp_atlas_images_to_target.nii.gz",
        "warp_target_images_to_atlas.nii.gz": "brings target images onto the atlas before the affine: "
        "antsApplyTransforms -t warp_target_images_to_atlas.nii.gz -t affine_target_images_to_atlas.tfm",
        **write_affines(lps, folder),
    }


def _write_warp(field: DisplacementField, path: Path) -> None:
    import nibabel as nib

    origin, spacing, direction = itk_geometry(field)
    matrix = np.eye(4)
    matrix[:3, :3] = _RAS_OF_LPS @ (direction * spacing)
    matrix[:3, 3] = _RAS_OF_LPS @ origin
    # (component, z, y, x) to (x, y, z, 1, component).
    vectors = np.ascontiguousarray(field.vectors.T)[:, :, :, np.newaxis, :]
    image = nib.Nifti1Image(vectors, matrix)
    image.set_sform(matrix, code=1)
    image.set_qform(matrix, code=1)
    image.header.set_intent("vector")
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
