"""What a path holds, as layers of a viewer: a volume, a run, or a registration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cloudreg.errors import InputError
from cloudreg.io import Volume, open_volume
from cloudreg.io.credentials import S3Access
from cloudreg.io.objects import is_remote
from cloudreg.io.precomputed import PREFIX
from cloudreg.run_folder import RunFolder, load_manifest
from cloudreg.viewer.neuroglancer import Layer

_TEMPLATE = "template_in_target"
_IN_TARGET = (_TEMPLATE, "labels_in_target")


def volumes_of(path: str) -> dict[str, Volume]:
    """Return the volumes to look at, by name.

    Of a run these are its corrected channels (those only stitched, if it has not come further) and the atlas that
    was brought to them; of a registration, what was registered and the atlas.

    Raises
    ------
    InputError
        If there is no volume.
    """
    manifest = Path(path) / "manifest.json"
    if is_remote(path.removeprefix(PREFIX)) or not manifest.is_file():
        return {_name(path): open_volume(path)}
    if load_manifest(Path(path)).get("kind") == "run":
        run = RunFolder(path)
        channels = _finished(run.path / "corrected") or _finished(run.path / "stitched")
        return channels | _atlas_in(run.registration)
    from cloudreg.registration import open_registration

    opened = open_registration(Path(path))
    target = opened.open_target()
    found = {_name(opened.target_path): target} | _atlas_in(Path(path))
    if not found:
        raise InputError(f"expected volumes in {path}, found none that is finished")
    return found


def layers_of(paths: Sequence[str], share: Callable[[Path], str]) -> list[Layer]:
    """Return the layers of some paths.

    Parameters
    ----------
    paths
        Volumes, runs, registrations; on this machine or anywhere.
    share
        Makes a file or folder of this machine readable for the browser, and returns its address.

    Raises
    ------
    InputError
        If a path holds no volume.
    """
    layers: list[Layer] = []
    names: set[str] = set()
    for path in paths:
        found = volumes_of(path)
        if not found:
            raise InputError(f"expected finished volumes in {path}, found none: run the same command again to go on")
        for name, volume in found.items():
            unique = next(n for n in (name, *(f"{name} {i}" for i in range(2, 10_000))) if n not in names)
            names.add(unique)
            place = volume.path.removeprefix(PREFIX)
            address = _for_browsers(place) if is_remote(place) else share(Path(place))
            layers.append(Layer(unique, volume, address, shown=name != _TEMPLATE))
    return layers


def _atlas_in(registration: Path) -> dict[str, Volume]:
    return {name: volume for name, volume in _finished(registration).items() if name in _IN_TARGET}


def _finished(folder: Path) -> dict[str, Volume]:
    found = {}
    for path in sorted(folder.glob("*.ome.zarr")):
        try:
            found[_name(str(path))] = open_volume(path)
        except InputError:
            continue  # still being written
    return found


def _name(path: str) -> str:
    name = path.rstrip("/").rpartition("/")[2]
    for suffix in (".ome.zarr", ".zarr", ".nii.gz", ".nii", ".n5"):
        name = name.removesuffix(suffix)
    return name


def _for_browsers(address: str) -> str:
    """Return an address that Neuroglancer reads: of a bucket on a server of one's own, the server's."""
    if address.startswith("s3://"):
        endpoint = S3Access.of(address.removeprefix("s3://").partition("/")[0]).endpoint
        if endpoint:
            return f"{endpoint.rstrip('/')}/{address.removeprefix('s3://')}"
    return address
