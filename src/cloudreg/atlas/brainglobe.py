"""Where BrainGlobe keeps an atlas on this machine, and how to get one that is not there yet."""

from __future__ import annotations

import configparser
import difflib
import tarfile
from pathlib import Path
from typing import get_args

from cloudreg.errors import InputError


def brainglobe_folder(name: str) -> Path:
    """Return the folder of a BrainGlobe atlas, after downloading it if need be.

    Raises
    ------
    InputError
        If there is no atlas of that name, or it can't be downloaded.
    """
    from brainglobe_atlasapi import config

    home = Path(config.get_brainglobe_dir())
    installed = sorted(home.glob(f"{name}_v*"), key=_version) if _is_plain(name) else []
    if installed:
        return installed[-1]

    from brainglobe_atlasapi.atlas_name import AtlasName

    known = get_args(AtlasName)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or ["allen_mouse_25um"]
        raise InputError(
            f"expected a BrainGlobe atlas or an atlas folder, got {name!r}, which is neither: "
            f"the closest names are {', '.join(close)}; for files give --template and --labels"
        )
    return _download(name, home)


def _download(name: str, home: Path) -> Path:
    from brainglobe_atlasapi import BrainGlobeAtlas

    try:
        BrainGlobeAtlas(name, check_latest=False)
    # The library reports a server that can't be reached, or answers nonsense, in all of these ways.
    except (OSError, ValueError, IndexError, configparser.Error, tarfile.TarError) as error:
        reason = str(error).replace("\n", " ")
        raise InputError(
            f"the atlas {name} is not in {home} and could not be downloaded ({reason}): connect to the internet, or "
            f"copy the folder {name}_v* from another machine's {home.name} there"
        ) from error
    return sorted(home.glob(f"{name}_v*"), key=_version)[-1]


def _is_plain(name: str) -> bool:
    return name.replace("_", "").replace("-", "").replace(".", "").isalnum()


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.name.rsplit("_v", 1)[-1].split(".") if part.isdigit())
