"""New chunked volumes, written block by block and marked complete last."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from numpy.typing import DTypeLike

from cloudreg.errors import InputError
from cloudreg.execution import Ledger, require_free_space
from cloudreg.io.chunked import AnotherArrayError
from cloudreg.io.dtypes import Kind, held_dtype
from cloudreg.io.existing import remove_volume
from cloudreg.io.layout import Layout, is_large
from cloudreg.io.levels import pyramid_grids
from cloudreg.io.objects import is_remote, plain_address, read_json, read_jsons, require_bucket, write_new_json
from cloudreg.io.opening import ROOTS
from cloudreg.io.precomputed import PREFIX
from cloudreg.io.writer import ROOT, VolumeWriter, metadata_of, opened_writer
from cloudreg.space import Grid, parse_orientation


def create_volume(
    path: str | os.PathLike[str],
    grid: Grid,
    dtype: DTypeLike,
    *,
    channels: int = 1,
    kind: Kind = "image",
    orientation: str | None = None,
    chunk: Sequence[int] | None = None,
    levels: int | None = None,
    channel_names: Sequence[str] | None = None,
    sharded: bool | None = None,
    overwrite: bool = False,
    ledger: Ledger | None = None,
) -> VolumeWriter:
    """Start a chunked volume, or go on with an identical one that was not finished.

    Parameters
    ----------
    path
        A folder named ``*.zarr`` (OME-Zarr 0.5) or ``precomputed://`` and a folder; an object store's address too.
    grid
        Grid of the finest level.
    dtype
        Type of a voxel.
    channels, channel_names
        Number of channels, and their names if there are any.
    kind
        Whether the levels are averages or most frequent ids.
    orientation
        Letters of the grid's physical axes z, y, x.
    chunk
        Voxels per chunk, z y x; by default 64 each way, and (64, 128, 128) for OME-Zarr without shards.
    levels
        Number of levels; by default until no axis is longer than 64 voxels (see `pyramid_grids`).
    sharded
        Whether many chunks share an object; by default for more than a gigabyte.
    overwrite
        Remove a CloudReg volume that stands at the path, finished or not.
    ledger
        Of the blocks that were written; cleared where there is no volume yet, for then they are gone.

    Raises
    ------
    InputError
        If the path holds anything else, its name is of no chunked format, or the disk is too small.
    """
    layout = planned_layout(
        path,
        grid,
        dtype,
        channels=channels,
        kind=kind,
        orientation=orientation,
        chunk=chunk,
        levels=levels,
        channel_names=channel_names,
        sharded=sharded,
    )
    if overwrite:
        remove_volume(layout.path)
    metadata = metadata_of(layout, complete=False)
    root = ROOT[layout.format]
    found = read_json(layout.path, root)
    if found is None:
        _require_empty(layout.path)
        if not is_remote(layout.path):
            require_free_space(layout.path, layout.bytes, f"volume {layout.path}")
        if ledger is not None:
            ledger.clear()  # of a volume that is gone
        if not write_new_json(layout.path, root, metadata):
            raise _occupied(layout, "one that another program began at this moment")
    elif found != metadata:
        raise _occupied(layout, "a finished volume" if found == metadata_of(layout, complete=True) else "another one")
    try:
        writer = opened_writer(layout, is_new=found is None)
    except AnotherArrayError as error:  # the levels' arrays know their types and chunks, which the group does not
        raise _occupied(layout, "another one") from error
    if ledger is not None and not len(ledger):
        ledger.clear()  # of another job, whose blocks will be written over
    return writer


def planned_layout(
    path: str | os.PathLike[str],
    grid: Grid,
    dtype: DTypeLike,
    *,
    channels: int = 1,
    kind: Kind = "image",
    orientation: str | None = None,
    chunk: Sequence[int] | None = None,
    levels: int | None = None,
    channel_names: Sequence[str] | None = None,
    sharded: bool | None = None,
) -> Layout:
    """Return what `create_volume` would make of the same parameters."""
    text = os.fspath(path)
    folder = plain_address(text.removeprefix(PREFIX))
    precomputed = text.startswith(PREFIX)
    if folder.startswith(("http://", "https://")):
        raise InputError(f"expected a folder or a bucket to write to, got the web server {folder}: give s3:// or gs://")
    if not precomputed and not folder.endswith(".zarr"):
        raise InputError(f"expected a path that ends in .ome.zarr or starts with precomputed://, got {text}")
    if channel_names is not None and len(channel_names) != channels:
        raise InputError(f"expected a name for each of {channels} channels of {text}, got {len(channel_names)}")
    held = held_dtype(dtype, text)
    if precomputed and held.name in ("int64", "float64"):
        raise InputError(f"expected a type that precomputed has, got {held.name} for {text}: write .ome.zarr")
    sharded = is_large(grid, held, channels) if sharded is None else sharded
    z, y, x = chunk or ((64, 64, 64) if precomputed or sharded else (64, 128, 128))
    return Layout(
        path=folder,
        format="precomputed" if precomputed else "ome-zarr",
        levels=pyramid_grids(grid, levels),
        dtype=held,
        channels=channels,
        kind=kind,
        chunk=(int(z), int(y), int(x)),
        orientation=None if orientation is None else parse_orientation(orientation),
        channel_names=None if channel_names is None else tuple(channel_names),
        sharded=sharded,
    )


def _occupied(layout: Layout, by: str) -> InputError:
    return InputError(
        f"expected nothing or the same unfinished volume at {layout.path}, got {by}: choose a new place or remove it"
    )


def _require_empty(path: str) -> None:
    folder = None if is_remote(path) else Path(path)
    if folder is None:
        require_bucket(path)
    elif not folder.exists():
        return
    elif not folder.is_dir():
        raise InputError(f"expected nothing at {folder}, got a file: choose a new place")
    others = read_jsons(path, ROOTS)
    if others:
        raise InputError(
            f"expected nothing at {path}, got another volume's {', '.join(others)}: choose a new place or remove it"
        )
    # A run killed while it wrote the very first file leaves that file's lock.
    if folder is not None and not all(p.name.endswith(".__lock") for p in folder.iterdir()):
        raise InputError(f"expected nothing at {folder}, got a folder that is not empty: choose a new place")
