"""2021: a COLM channel from raw planes on S3 to even volumes on S3."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cloudreg.errors import InputError, StoreUnreachableError
from cloudreg.execution.progress import say
from cloudreg.io import open_volume
from cloudreg.scripts._legacy import moved, precomputed, run, text_or_none
from cloudreg.scripts.correct_raw_data import correct_raw_data
from cloudreg.scripts.correct_stitched_data import correct_stitched_data
from cloudreg.scripts.create_precomputed_volume import create_precomputed_volume
from cloudreg.scripts.download_raw_data import download_raw_data
from cloudreg.scripts.stitching import get_metadata, run_terastitcher
from cloudreg.scripts.util import PROJECTS, download_terastitcher_files
from cloudreg.scripts.visualization import create_viz_link
from cloudreg.tiles.colm import INI, VIEW, is_corrected, open_colm

moved("colm_pipeline", "cloudreg run")

__all__ = ["colm_pipeline"]


def colm_pipeline(
    input_s3_path: str,
    output_s3_path: str,
    channel_of_interest: int,
    autofluorescence_channel: int,
    raw_data_path: str,
    stitched_data_path: str,
    log_s3_path: str | None = None,
) -> None:
    """Correct, stitch and even out one channel; the same call goes on with one that was stopped.

    Parameters
    ----------
    input_s3_path
        Raw data, ``s3://bucket/experiment``.
    output_s3_path
        Gets two precomputed volumes: the even one in a folder of the channel's number, and the one before that in
        ``<number>_stitched``.
    channel_of_interest
        Which one.
    autofluorescence_channel
        The channel by which tiles are aligned, once for all channels: where no alignment lies in the stitched data or
        the log, this one is brought and corrected, too.
    raw_data_path
        Gets the raw planes, and their corrected copies beside them.
    stitched_data_path
        Gets TeraStitcher's projects, and the stitched planes in a folder of the channel's number.
    log_s3_path
        Gets the vignetting and the projects.
    """
    raw = Path(raw_data_path).expanduser()
    stitched = Path(stitched_data_path).expanduser()
    output = output_s3_path.rstrip("/")
    even, uneven = f"{output}/{channel_of_interest}", f"{output}/{channel_of_interest}_stitched"
    if _is_finished(even):
        return
    if not _is_finished(uneven):
        _bring(input_s3_path, channel_of_interest, raw, log_s3_path)
        planes = stitched / str(channel_of_interest)
        if not any(planes.glob("RES(*)")):
            planes.mkdir(parents=True, exist_ok=True)
            aligned = _alignment(input_s3_path, autofluorescence_channel, raw, stitched, log_s3_path)
            (planes / aligned.name).write_bytes(aligned.read_bytes())
            run_terastitcher(str(raw / VIEW), str(planes), input_s3_path, stitch_only=True, channel=channel_of_interest)
        (folder,) = planes.glob("RES(*)")
        create_precomputed_volume(str(folder), get_metadata(str(raw / INI))["voxel_size"], uneven)
    correct_stitched_data(uneven, even)


def _bring(source: str, channel: int, raw: Path, log: str | None) -> None:
    """Have the corrected planes of a channel on this machine."""
    download_raw_data(source, channel, str(raw))
    if not _is_corrected(raw, channel):
        correct_raw_data(str(raw / VIEW), channel, log_s3_path=log)


def _is_corrected(raw: Path, channel: int) -> bool:
    """Whether there are corrected copies of all planes of a channel, and no half-done work."""
    if any(raw.glob(f".correct_{channel:02d}.*.ledger")):
        return False
    try:
        acquisition = open_colm(raw)
    except InputError:
        return False
    tile = next(t for t in acquisition.tiles if acquisition.planes(t, channel))
    return is_corrected(acquisition.plane_path(tile, channel, acquisition.planes(tile, channel)[0][0]).name)


def _alignment(source: str, channel: int, raw: Path, stitched: Path, log: str | None) -> Path:
    """Return the project of the placed tiles, which is made where there is none."""
    aligned = stitched / PROJECTS[-1]
    if not aligned.exists() and not (log and download_terastitcher_files(log, str(stitched))):
        _bring(source, channel, raw, log)
        run_terastitcher(str(raw / VIEW), str(stitched), source, log, compute_only=True, channel=channel)
    return aligned


def _is_finished(path: str) -> bool:
    try:
        open_volume(precomputed(path))
    except InputError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("python -m cloudreg.scripts.colm_pipeline", description="COLM pipeline")
    parser.add_argument("input_s3_path", help="raw data")
    parser.add_argument("output_s3_path", help="where the volumes go")
    parser.add_argument("num_channels", type=int, help="number of channels")
    parser.add_argument("autofluorescence_channel", type=int, help="channel to align by")
    parser.add_argument("--raw_data_path", default="~/ssd1", help="for raw planes (default: %(default)s)")
    parser.add_argument("--stitched_data_path", default="~/ssd2", help="for stitched planes (default: %(default)s)")
    parser.add_argument("--log_s3_path", type=text_or_none, default=None, help="where intermediates go")
    return run(_all_channels, parser.parse_args(arguments))


def _all_channels(given: argparse.Namespace) -> None:
    values = vars(given)
    count, first, output = values.pop("num_channels"), given.autofluorescence_channel, given.output_s3_path
    if not 0 <= first < count:
        raise InputError(f"expected the autofluorescence channel within 0 to {count - 1}, got {first}")
    for channel in (first, *(c for c in range(count) if c != first)):
        colm_pipeline(channel_of_interest=channel, **values)
    paths = [f"{output.rstrip('/')}/{channel}" for channel in range(count)]
    try:
        print(create_viz_link(paths))
    except StoreUnreachableError as error:
        say(str(error))
        print(create_viz_link(paths, url=None))


if __name__ == "__main__":
    sys.exit(main())
