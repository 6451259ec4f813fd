"""``cloudreg convert``, ``download``, ``pyramid`` and ``info``: volumes, here and in buckets."""

from __future__ import annotations

from typing import Annotated

import typer

from cloudreg.cli_options import Cluster, Memory, Orientation, VolumeIn, VolumeOut, VoxelSize, Workers, new_engine

Level = Annotated[int | None, typer.Option("--level", min=0, help="Level to take; 0 is the finest.")]
NearResolution = Annotated[
    float | None, typer.Option("--resolution", metavar="UM", help="Take the coarsest level that is at least as fine.")
]
Region = Annotated[
    str | None, typer.Option("--region", metavar="Z0:Z1,Y0:Y1,X0:X1", help="Box to take, in voxels of that level.")
]
Verify = Annotated[bool, typer.Option("--verify", help="Read the result back and compare every voxel.")]
FillMissing = Annotated[bool, typer.Option("--fill-missing", help="Take chunks that are missing for zeros.")]


def convert(
    source: VolumeIn,
    out: VolumeOut,
    voxel_size: VoxelSize = None,
    orientation: Orientation = None,
    labels: Annotated[bool, typer.Option("--labels", help="Region ids, whatever the file says.")] = False,
    level: Level = None,
    resolution: NearResolution = None,
    region: Region = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Such as uint16; rounds and clips.")] = None,
    sharded: Annotated[
        bool | None,
        typer.Option("--sharded/--no-sharded", help="Many chunks an object; default: for more than a gigabyte."),
    ] = None,
    fill_missing: FillMissing = False,
    verify: Verify = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how many objects and requests it would take.")
    ] = False,
    workers: Workers = None,
    memory: Memory = None,
    cluster: Cluster = None,
) -> None:
    """Write a volume in another format, told by the new name; a stopped run goes on where it was."""
    from cloudreg import commands

    with new_engine(workers, memory, cluster) as engine:
        commands.convert(
            source,
            out,
            engine,
            voxel_size_um=voxel_size,
            orientation=orientation,
            kind="labels" if labels else None,
            level=level,
            resolution_um=resolution,
            region=region,
            dtype=dtype,
            sharded=sharded,
            fill_missing=fill_missing,
            verify=verify,
            dry_run=dry_run,
        )


def download(
    source: VolumeIn,
    out: VolumeOut,
    voxel_size: VoxelSize = None,
    level: Level = None,
    resolution: NearResolution = None,
    region: Region = None,
    fill_missing: FillMissing = False,
    verify: Verify = False,
    workers: Workers = None,
    memory: Memory = None,
) -> None:
    """Fetch a volume, a level or a box of it, into files; a stopped run goes on where it was."""
    from cloudreg import commands

    with new_engine(workers, memory) as engine:
        commands.convert(
            source,
            out,
            engine,
            voxel_size_um=voxel_size,
            level=level,
            resolution_um=resolution,
            region=region,
            fill_missing=fill_missing,
            verify=verify,
        )


def pyramid(
    volume: Annotated[str, typer.Argument(help="OME-Zarr or precomputed volume; its coarser levels are made anew.")],
    fill_missing: FillMissing = False,
    workers: Workers = None,
    memory: Memory = None,
    cluster: Cluster = None,
) -> None:
    """Make the coarser resolutions of a chunked volume; a stopped run goes on where it was."""
    from cloudreg import commands

    with new_engine(workers, memory, cluster) as engine:
        commands.pyramid(volume, engine, fill_missing=fill_missing)


def info(
    path: Annotated[str, typer.Argument(help="Volume, acquisition, run or registration.")],
    voxel_size: VoxelSize = None,
) -> None:
    """Say what a path holds."""
    from cloudreg import commands

    commands.info(path, voxel_size_um=voxel_size)
