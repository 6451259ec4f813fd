"""ITK transform files.

ITK's world is LPS millimetres, x y z. Its transforms take a point of the image that is *made* to the point of the
image that is *read*, so the one that brings atlas images onto the target maps target points to the atlas.

References
----------
.. [1] H. J. Johnson, M. M. McCormick, L. Ibanez, "The ITK Software Guide", 4th ed., book 2, chapter 3.9.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.transforms.displacement import DisplacementField
from cloudreg.transforms.frames import Frame, in_lps, itk_geometry
from cloudreg.transforms.transform import Transform


def write_itk(transform: Transform, atlas: Frame, target: Frame, folder: Path) -> dict[str, str]:
    """Write a composite transform a direction, and the affines alone; return what each file does."""
    import SimpleITK as sitk

    lps = in_lps(transform, atlas, target)
    forward, backward = _affine(lps.affine), _affine(lps.inverse_affine)
    # A composite does the transform that was added last first.
    to_target = sitk.CompositeTransform([_displacement(lps.to_atlas), backward])
    to_atlas = sitk.CompositeTransform([forward, _displacement(lps.to_target)])
    sitk.WriteTransform(to_target, str(folder / "atlas_images_to_target.h5"))
    sitk.WriteTransform(to_atlas, str(folder / "target_images_to_atlas.h5"))
    return {
        "atlas_images_to_target.h5": "brings atlas images onto the target: maps target points to the atlas",
        "target_images_to_atlas.h5": "brings target images onto the atlas: maps atlas points to the target",
        **write_affines(lps, folder),
    }


def write_affines(lps: Transform, folder: Path) -> dict[str, str]:
    """Write the affine of a transform that is in LPS millimetres, both ways."""
    import SimpleITK as sitk

    sitk.WriteTransform(_affine(lps.inverse_affine), str(folder / "affine_atlas_images_to_target.tfm"))
    sitk.WriteTransform(_affine(lps.affine), str(folder / "affine_target_images_to_atlas.tfm"))
    return {
        "affine_atlas_images_to_target.tfm": "the affine part alone: maps target points to the atlas",
        "affine_target_images_to_atlas.tfm": "the affine part alone: maps atlas points to the target",
    }


def _affine(matrix: NDArray[np.float64]) -> Any:
    import SimpleITK as sitk

    affine = sitk.AffineTransform(3)
    affine.SetMatrix(matrix[:3, :3].ravel().tolist())
    affine.SetTranslation(matrix[:3, 3].tolist())
    return affine


def _displacement(field: DisplacementField) -> Any:
    import SimpleITK as sitk

    origin, spacing, direction = itk_geometry(field)
    image = sitk.GetImageFromArray(np.moveaxis(field.vectors, 0, -1).astype(np.float64), isVector=True)
    image.SetOrigin(origin.tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.ravel().tolist())
    return sitk.DisplacementFieldTransform(image)
