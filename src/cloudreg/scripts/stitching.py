"""2021: TeraStitcher's commands for a COLM acquisition, and all of them run, on our own stitching."""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cloudreg.errors import InputError
from cloudreg.scripts._legacy import boolean, moved, run
from cloudreg.scripts._s3url import S3Url
from cloudreg.scripts._steps import run_step
from cloudreg.scripts._storage import store_file
from cloudreg.scripts.download_raw_data import download_description
from cloudreg.scripts.util import PROJECTS, download_terastitcher_files
from cloudreg.stitching import reuse_alignment
from cloudreg.tiles import Project, ProjectTile, open_acquisition, read_project, to_project, write_project
from cloudreg.tiles.colm import INI, SCANNED_CELLS, folder_name
from cloudreg.tiles.experiment import read_experiment, read_scanned_cells

moved("stitching", "cloudreg align and cloudreg fuse")

__all__ = [
    "generate_stitching_commands",
    "get_metadata",
    "get_scanned_cells",
    "run_terastitcher",
    "write_import_xml",
    "write_terastitcher_commands",
]

STITCH_ONLY, COMPUTE_ONLY, ALL_STEPS = 0, 1, 2
_SEARCH_PX_AT_10X = (60, 100, 5)
_USUAL_SEARCH_PX = (60, 60, 20)
_LAYER_PLANES = 60
_THRESHOLD = 0.3


def get_metadata(path_to_config: str) -> dict[str, Any]:
    """Read ``Experiment.ini``.

    Returns
    -------
    dict
        ``voxel_size`` (x, y, z, um), ``num_rows`` and ``num_columns`` of the grid, ``num_slices`` of a tile,
        ``tile_height`` and ``tile_width`` in pixels, ``overlap_v`` and ``overlap_h`` as fractions, ``pitch_v`` and
        ``pitch_h`` (distance of neighbours, um), ``height`` and ``width`` of the nominal mosaic in pixels,
        ``num_channels``, ``objective``, and how far alignment searches in pixels: ``search_v``, ``search_h``,
        ``search_d``.
    """
    experiment = read_experiment(Path(path_to_config))
    pixel = experiment.pixel_size_um
    if pixel is None:
        raise InputError(f"{path_to_config} names the objective {experiment.objective!r}, whose pixels are not known")
    ten = re.search(r"(?<![\d.])10(\.0*)?\s*x", experiment.objective, re.IGNORECASE)
    usual = tuple(math.ceil(n * experiment.width / 2048) for n in _USUAL_SEARCH_PX)
    searches = _SEARCH_PX_AT_10X if ten else usual
    (vertical, horizontal), height, width = experiment.overlap, experiment.height, experiment.width
    return {
        "voxel_size": [pixel, pixel, experiment.step_um],
        "num_rows": experiment.rows,
        "num_columns": experiment.columns,
        "num_slices": experiment.planes,
        "tile_height": height,
        "tile_width": width,
        "overlap_v": vertical,
        "overlap_h": horizontal,
        "pitch_v": height * (1 - vertical) * pixel,
        "pitch_h": width * (1 - horizontal) * pixel,
        "height": math.ceil(height * (1 - vertical) * (experiment.rows - 1) + height),
        "width": math.ceil(width * (1 - horizontal) * (experiment.columns - 1) + width),
        "num_channels": experiment.channels,
        "objective": experiment.objective,
        **dict(zip(("search_v", "search_h", "search_d"), searches, strict=True)),
    }


def get_scanned_cells(fname_scanned_cells: str) -> list[list[int]]:
    """Read which cells of the grid were imaged: rows of 1 and 0."""
    path = Path(fname_scanned_cells)
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    columns = len(lines[0].split(",")) if lines else 0
    return [[int(cell) for cell in row] for row in read_scanned_cells(path, len(lines), columns)]


def write_import_xml(
    fname_importxml: str, scanned_matrix: Sequence[Sequence[Any]], metadata: Mapping[str, Any]
) -> None:
    """Write the project of TeraStitcher before its first step.

    Parameters
    ----------
    fname_importxml
        New file.
    scanned_matrix
        1 (or ``"1"``) where a cell was imaged, by rows.
    metadata
        See `get_metadata`; ``stack_dir`` is the folder of the tiles' folders, by default that of the file. With
        ``channel``, planes are those that are really there.
    """
    columns = {len(row) for row in scanned_matrix}
    if len(scanned_matrix) != metadata["num_rows"] or columns != {metadata["num_columns"]}:
        raise InputError(
            f"expected {metadata['num_rows']} rows of {metadata['num_columns']} cells, got {len(scanned_matrix)} rows "
            f"of {sorted(columns)}"
        )
    stack_dir = Path(metadata.get("stack_dir") or Path(fname_importxml).absolute().parent)
    channel = metadata.get("channel")
    if channel is not None:
        project = to_project(open_acquisition(stack_dir), channel)
    else:
        project = _nominal_project(stack_dir, scanned_matrix, metadata)
    write_project(project, fname_importxml, step="import")


def _nominal_project(stack_dir: Path, scanned: Sequence[Sequence[Any]], metadata: Mapping[str, Any]) -> Project:
    x, y, z = (float(v) for v in metadata["voxel_size"])
    pitch = float(metadata["pitch_v"]), float(metadata["pitch_h"])
    tiles = tuple(
        ProjectTile(
            row,
            column,
            name=folder_name(row * len(cells) + column) if int(cell) else "",
            position_px=(0.0, row * pitch[0] / y, column * pitch[1] / x),
            planes=((0, int(metadata["num_slices"])),) if int(cell) else (),
            pattern=r".*\.tiff?",
        )
        for row, cells in enumerate(scanned)
        for column, cell in enumerate(cells)
    )
    return Project(
        rows=len(scanned),
        columns=len(scanned[0]),
        slices=int(metadata["num_slices"]),
        voxel_size_um=(z, y, x),
        pitch_um=pitch,
        stacks_dir=stack_dir.absolute(),
        tiles=tiles,
    )


def write_terastitcher_commands(
    fname_ts: str, metadata: Mapping[str, Any], stitched_dir: str, do_steps: int
) -> list[str]:
    """Write a script of the commands that stitch, and return them.

    Parameters
    ----------
    fname_ts
        The script, for bash.
    metadata
        See `get_metadata`.
    stitched_dir
        Where the projects lie, and the stitched planes go.
    do_steps
        2 for all steps, 1 to compute the alignment only, 0 to stitch only.
    """
    if do_steps not in (STITCH_ONLY, COMPUTE_ONLY, ALL_STEPS):
        raise InputError(f"expected 0 (stitch), 1 (compute) or 2 (all) as the steps to do, got {do_steps}")
    names = [str(Path(stitched_dir) / name) for name in PROJECTS]
    radii = [f"-s{axis.upper()}={metadata[f'search_{axis}']}" for axis in "vhd"]
    options = {2: [*radii, f"-subvoldim={_LAYER_PLANES}"], 4: [f"-threshold={_THRESHOLD}"]}
    commands = []
    if do_steps != STITCH_ONLY:
        for step in (2, 3, 4, 5):
            words = [f"-{step}", f"-projin={names[step - 2]}", f"-projout={names[step - 1]}", *options.get(step, [])]
            commands.append(_command("parastitcher", words))
    if do_steps != COMPUTE_ONLY:
        formats = ["-sfmt=TIFF (unstitched, 3D)", "-dfmt=TIFF (series, 2D)", "-resolutions=0"]
        commands.append(_command("paraconverter", [f"-s={names[-1]}", f"-d={stitched_dir}", *formats]))
    Path(fname_ts).write_text("#!/bin/bash\nset -e\n" + "".join(f"{command}\n" for command in commands))
    return commands


def _command(module: str, words: Sequence[str]) -> str:
    return shlex.join([sys.executable, "-m", f"cloudreg.scripts.{module}", *words])


def generate_stitching_commands(
    stitched_dir: str,
    stack_dir: str,
    metadata_s3_bucket: str,
    metadata_s3_path: str,
    do_steps: int = ALL_STEPS,
    channel: int | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Return the metadata of an acquisition and the commands that stitch it.

    Parameters
    ----------
    stitched_dir
        Gets the project of the first step and the script of the commands; later the stitched planes.
    stack_dir
        ``VW0`` of the acquisition. Its two text files are brought beside it if they are not there.
    metadata_s3_bucket, metadata_s3_path
        Where these lie: bucket, and folder in it.
    do_steps
        See `write_terastitcher_commands`.
    channel
        Which one, where there are several.
    """
    home = Path(stack_dir).absolute().parent
    if metadata_s3_bucket and not ((home / INI).exists() and (home / SCANNED_CELLS).exists()):
        download_description(f"s3://{metadata_s3_bucket}/{metadata_s3_path}", home)
    metadata = get_metadata(str(home / INI))
    channels = open_acquisition(stack_dir).channels
    if channel is None and len(channels) != 1:
        raise InputError(f"expected the planes of one channel in {stack_dir}, got those of {channels}: say which")
    metadata |= {"stack_dir": str(Path(stack_dir).absolute()), "channel": channels[0] if channel is None else channel}
    folder = Path(stitched_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_import_xml(str(folder / PROJECTS[0]), get_scanned_cells(str(home / SCANNED_CELLS)), metadata)
    commands = write_terastitcher_commands(str(folder / "terastitcher.sh"), metadata, stitched_dir, do_steps)
    return metadata, commands


def run_terastitcher(
    raw_data_path: str,
    stitched_data_path: str,
    input_s3_path: str,
    log_s3_path: str | None = None,
    stitch_only: bool = False,
    compute_only: bool = False,
    channel: int | None = None,
) -> dict[str, Any]:
    """Align and stitch an acquisition.

    Parameters
    ----------
    raw_data_path
        ``VW0`` of it.
    stitched_data_path
        Gets the projects of all steps, and the stitched planes in a folder ``RES(…)``.
    input_s3_path
        Where its two text files lie, if they are not beside ``VW0``.
    log_s3_path
        Gets the projects, too.
    stitch_only
        Take the alignment that lies at one of these places, which may be of another channel.
    compute_only
        Stop when the tiles are placed.
    channel
        Which one, where there are several.

    Returns
    -------
    dict
        See `get_metadata`.

    Raises
    ------
    InputError
        If there is no alignment to take, or both are asked for.
    """
    if stitch_only and compute_only:
        raise InputError("expected stitch_only or compute_only, got both")
    steps = STITCH_ONLY if stitch_only else COMPUTE_ONLY if compute_only else ALL_STEPS
    place = S3Url.of(input_s3_path) if input_s3_path else None
    bucket, key = ("", "") if place is None else (place.bucket, place.key)
    metadata, commands = generate_stitching_commands(stitched_data_path, raw_data_path, bucket, key, steps, channel)
    folder = Path(stitched_data_path)
    if stitch_only:
        aligned = folder / PROJECTS[-1]
        if not aligned.exists() and not (log_s3_path and download_terastitcher_files(log_s3_path, str(folder))):
            raise InputError(f"expected {aligned.name} in {folder} or {log_s3_path}, got none: run all steps first")
        acquisition = open_acquisition(raw_data_path)
        write_project(reuse_alignment(read_project(aligned), acquisition, metadata["channel"]), aligned, step="merging")
    for command in commands:
        module, *words = shlex.split(command)[2:]
        run_step(words, conversion=module.endswith("paraconverter"))
    if log_s3_path and not stitch_only:
        for name in PROJECTS:
            store_file(folder / name, log_s3_path)
    return metadata


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("python -m cloudreg.scripts.stitching", description="stitch COLM tiles")
    parser.add_argument("--stitched_dir", default="/home/ubuntu/ssd2/stitched_data", help="where the planes go")
    parser.add_argument("--stack_dir", default="/home/ubuntu/ssd1/VW0", help="VW0 of the acquisition")
    parser.add_argument("--config_file", default="/home/ubuntu/ssd1/Experiment.ini", help="beside VW0")
    parser.add_argument("--scanned_cells", default="/home/ubuntu/ssd1/Scanned Cells.txt", help="beside VW0")
    parser.add_argument("--stitch_only", type=boolean, default=False, help="True or False")
    return run(_stitch, parser.parse_args(arguments))


def _stitch(given: argparse.Namespace) -> None:
    home = Path(given.stack_dir).absolute().parent
    for path, name in ((given.config_file, INI), (given.scanned_cells, SCANNED_CELLS)):
        if Path(path).absolute() != home / name:
            raise InputError(f"expected {name} beside {given.stack_dir}, got {path}: copy it there")
    run_terastitcher(given.stack_dir, given.stitched_dir, "", stitch_only=given.stitch_only)


if __name__ == "__main__":
    sys.exit(main())
