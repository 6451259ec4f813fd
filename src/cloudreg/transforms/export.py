"""Transforms in the files of other programs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from cloudreg.errors import InputError
from cloudreg.transforms.frames import Frame
from cloudreg.transforms.itk import write_itk
from cloudreg.transforms.rfc5 import write_rfc5
from cloudreg.transforms.transform import Transform
from cloudreg.transforms.warps import write_warps

FieldFormat = Literal["itk", "nifti", "rfc5"]
_WRITERS = {"itk": write_itk, "nifti": write_warps, "rfc5": write_rfc5}
README = "README.txt"


def export_transform(transform: Transform, atlas: Frame, target: Frame, out: str | Path, form: FieldFormat) -> None:
    """Write a transform, both ways, for other programs.

    Parameters
    ----------
    transform
        Between atlas and target.
    atlas, target
        Where both lie. The files are right for all points of these volumes; beyond them other programs stop.
    out
        New folder.
    form
        ``"itk"``: composite transforms (.h5) and affines (.tfm), LPS millimetres. ``"nifti"``: warps in the
        convention of ANTs, and affines, likewise. ``"rfc5"``: an OME-Zarr 0.6 scene, micrometres.

    Raises
    ------
    InputError
        If the folder holds something, or the format can't say where the nodes lie.
    """
    with new_folder(out) as folder:
        files = _WRITERS[form](transform, atlas, target, folder)
        if form != "rfc5":  # the scene says it itself, and a Zarr group holds no other files
            write_readme(folder, files, atlas, target, form)


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """Yield a folder beside ``out`` that becomes ``out`` when the block ends well.

    Raises
    ------
    InputError
        If ``out`` holds something.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists already: choose another place, or remove it first")
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.replace(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_readme(folder: Path, files: dict[str, str], atlas: Frame, target: Frame, form: str) -> None:
    """Say what the files do and in which frames, for the person who opens the folder."""
    lines = [f"A CloudReg transform as {form}. How to use it: docs/transforms.md of CloudReg.", ""]
    lines += [f"{name}: {does}" for name, does in files.items()]
    for name, frame in (("atlas", atlas), ("target", target)):
        lines += [
            "",
            f"{name}: array {frame.grid.shape} (z, y, x); physical axes z, y, x start at "
            f"{frame.orientation or 'sides that are not known, so x, y, z are taken for L, P, S'}.",
            f"  index (z, y, x, 1) to micrometres (z, y, x, 1): {json.dumps(frame.grid.affine.tolist())}",
            f"  micrometres (z, y, x, 1) to LPS millimetres (x, y, z, 1): {json.dumps(frame.to_lps_mm.tolist())}",
        ]
    (folder / README).write_text("\n".join(lines) + "\n")
