"""2021: helpers for addresses, lists, SimpleITK images and AWS."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cloudreg.errors import InputError, MissingExtraError
from cloudreg.io.objects import read_files
from cloudreg.scripts._legacy import moved
from cloudreg.scripts._s3url import S3Url
from cloudreg.space import parse_orientation

if TYPE_CHECKING:
    import SimpleITK

moved("util", "cloudreg.io for volumes, cloudreg.space for letters and cloudreg.cloud for AWS")

__all__ = [
    "S3Url",
    "aws_cli",
    "calc_hierarchy_levels",
    "chunks",
    "download_terastitcher_files",
    "get_bias_field",
    "get_matching_s3_keys",
    "get_reorientations",
    "imgResample",
    "run_command_on_server",
    "start_ec2_instance",
    "tqdm_joblib",
    "upload_file_to_s3",
]

Item = TypeVar("Item")
PROJECTS = tuple(f"xml_{step}.xml" for step in ("import", "displcomp", "displproj", "displthres", "merging"))
"""What TeraStitcher's steps write; the last holds the positions of the tiles."""


def aws_cli(*cmd: str) -> None:
    """Run a command of the AWS command line, such as ``aws_cli("s3", "ls")``; raises RuntimeError if it fails."""
    from cloudreg.cloud.awscli import aws_cli as call

    call(*cmd)


def calc_hierarchy_levels(img_size: Sequence[int], lowest_res: int = 1024) -> int:
    """Return how often x and y (of x, y, z) are halved until a plane fits in a chunk of ``lowest_res`` pixels.

    Examples
    --------
    >>> calc_hierarchy_levels([4096, 2000, 30])
    2
    """
    longest = max(int(n) for n in img_size[:2])
    return max(0, math.ceil(math.log2(longest / lowest_res)))


def chunks(l: Sequence[Item], n: int) -> Iterator[Sequence[Item]]:  # noqa: E741 - the documented name
    """Yield lists of ``n`` elements each; the last may have fewer.

    Examples
    --------
    >>> list(chunks([1, 2, 3, 4, 5], 2))
    [[1, 2], [3, 4], [5]]
    """
    if n < 1:
        raise InputError(f"expected chunks of at least one element, got {n}")
    for start in range(0, len(l), n):
        yield l[start : start + n]


def download_terastitcher_files(s3_path: str, local_path: str) -> bool:
    """Copy the projects of TeraStitcher's steps from S3; return whether an alignment was there.

    Only what ends in ``xml_merging.xml`` is an alignment: what a stopped upload left is not taken.
    """
    found = read_files(s3_path.rstrip("/"), PROJECTS)
    if PROJECTS[-1] not in found:
        return False
    Path(local_path).mkdir(parents=True, exist_ok=True)
    for name, content in found.items():
        part = Path(local_path) / f".{name}.part"
        part.write_bytes(content)
        part.replace(Path(local_path) / name)
    return True


def get_bias_field(
    img: SimpleITK.Image,
    mask: SimpleITK.Image | None = None,
    scale: float = 1.0,
    niters: Sequence[int] = [50, 50, 50, 50],
) -> SimpleITK.Image:
    """Correct the bias field of an image by N4 (Tustison et al. 2010, doi:10.1109/TMI.2010.2046908).

    Parameters
    ----------
    img
        Image with a bias field.
    mask
        Voxels that are looked at; all by default.
    scale
        Size, as a fraction of the image's, at which the field is found.
    niters
        Iterations per resolution.

    Returns
    -------
    SimpleITK.Image
        The corrected image, 32-bit float, of the same size and spacing. The field itself is ``img / result``.
    """
    import SimpleITK as sitk

    if not 0 < scale <= 1:
        raise InputError(f"expected a scale above 0 and up to 1, got {scale}")
    image = sitk.Cast(img, sitk.sitkFloat32)
    inside = sitk.Cast(image * 0 + 1 if mask is None else mask != 0, sitk.sitkUInt8)
    inside.CopyInformation(image)
    shrink = [min(round(1 / scale), n) for n in image.GetSize()]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([int(n) for n in niters])
    small = sitk.BinShrink(image, shrink)
    small_inside = sitk.BinShrink(sitk.Cast(inside, sitk.sitkFloat32), shrink) >= 0.5
    n4.Execute(small, small_inside)
    return image / sitk.Cast(sitk.Exp(n4.GetLogBiasFieldAsImage(image)), sitk.sitkFloat32)


def get_matching_s3_keys(bucket: str, prefix: str = "", suffix: str = "") -> Iterator[str]:
    """Yield the keys of a bucket that start with ``prefix`` and end with ``suffix``."""
    from cloudreg.cloud.s3 import matching_keys

    yield from matching_keys(bucket, prefix, suffix)


def get_reorientations(in_orient: str, out_orient: str) -> tuple[list[int], list[bool]]:
    """Return how to turn an array from one orientation to another.

    Parameters
    ----------
    in_orient, out_orient
        Three letters, one per axis: one of A/P, one of S/I, one of L/R.

    Returns
    -------
    order, flips
        Output axis i is input axis ``order[i]``, backwards where ``flips[i]``.

    Raises
    ------
    Exception
        If letters are not valid.

    Examples
    --------
    >>> get_reorientations("PIR", "LPS")
    ([2, 0, 1], [True, False, True])
    """
    source, destination = parse_orientation(in_orient), parse_orientation(out_orient)
    pairs = {letter: pair for pair in ("ap", "si", "lr") for letter in pair}
    order = [next(i for i, other in enumerate(source) if other in pairs[letter]) for letter in destination]
    return order, [source[axis] != letter for axis, letter in zip(order, destination, strict=True)]


def imgResample(
    img: SimpleITK.Image,
    spacing: Sequence[float],
    size: Sequence[int] = [],
    useNearest: bool = False,
    origin: Sequence[float] | None = None,
    outsideValue: float = 0,
) -> SimpleITK.Image:
    """Resample an image to a spacing and size.

    Parameters
    ----------
    img
        3D image.
    spacing
        Voxel size x, y, z of the result.
    size
        Voxels x, y, z; by default as many as lie within the image.
    useNearest
        Take the nearest voxel, as labels need, instead of interpolating linearly.
    origin
        Where the first voxel lies in space, [0, 0, 0] by default; the result's first voxel lies there too.
    outsideValue
        For voxels beyond the image.
    """
    import SimpleITK as sitk

    source = sitk.Image(img)
    source.SetOrigin([0.0] * 3 if origin is None else [float(v) for v in origin])
    if not len(size):
        lengths = zip(source.GetSize(), source.GetSpacing(), spacing, strict=True)
        # A voxel reaches half its size beyond its centre, that end left out.
        size = [math.ceil((n - 0.5) * old / new - 1e-9) for n, old, new in lengths]
    return sitk.Resample(
        source,
        [int(n) for n in size],
        sitk.Transform(),
        sitk.sitkNearestNeighbor if useNearest else sitk.sitkLinear,
        source.GetOrigin(),
        [float(v) for v in spacing],
        source.GetDirection(),
        outsideValue,
        source.GetPixelID(),
    )


def run_command_on_server(command: str, ssh_key_path: str, ip_address: str, username: str = "ubuntu") -> str:
    """Run a command on another machine by ssh, with its output as it comes; return what it wrote to its errors."""
    from cloudreg.cloud.ssh import run_on_server

    return str(run_on_server(command, ssh_key_path, ip_address, username))


def start_ec2_instance(instance_id: str, instance_type: str) -> str:
    """Start a machine of EC2 as a given type; return its public address."""
    from cloudreg.cloud.ec2 import start_instance

    return str(start_instance(instance_id, instance_type))


@contextmanager
def tqdm_joblib(tqdm_object: Any) -> Iterator[Any]:
    """Let joblib report its finished tasks to a tqdm bar, which is closed at the end."""
    try:
        from joblib import Parallel
    except ImportError:
        raise MissingExtraError("joblib", "legacy") from None
    own = Parallel.print_progress
    seen: dict[int, int] = {}

    def report(parallel: Any) -> None:
        before = seen.get(id(parallel), 0)
        # A Parallel that is called again counts from the beginning.
        tqdm_object.update(parallel.n_completed_tasks - (before if parallel.n_completed_tasks >= before else 0))
        seen[id(parallel)] = parallel.n_completed_tasks
        own(parallel)

    Parallel.print_progress = report
    try:
        yield tqdm_object
    finally:
        Parallel.print_progress = own
        tqdm_object.close()


def upload_file_to_s3(local_path: str, s3_bucket: str, s3_key: str) -> None:
    """Copy a file to S3."""
    from cloudreg.cloud.s3 import upload_file

    upload_file(local_path, s3_bucket, s3_key)
