"""Run one rival of `benchmarks/volumes.py`, in an interpreter that has it; print what it took as JSON.

    python benchmarks/volume_rivals.py METHOD FOLDER

METHOD is a key of `METHODS`. FOLDER holds ``series``, the planes, and gets ``rival``, the volume.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

_CHUNK = 64


def cloud_volume(folder: Path, compress: str | None) -> dict[str, float]:
    """Write slabs of 64 planes and, with tinybrain, their four coarser levels, on two processes."""
    import tifffile
    from cloudvolume import CloudVolume

    files = sorted((folder / "series").iterdir())
    size = (*tifffile.imread(files[0]).shape[::-1], len(files))
    info = CloudVolume.create_new_info(1, "image", "uint16", "raw", (2000,) * 3, (0, 0, 0), size, chunk_size=(64,) * 3)
    volume = CloudVolume(f"file://{folder}/rival", info=info, compress=compress, progress=False)
    for level in range(1, 5):
        volume.add_scale((2**level,) * 3)
    volume.commit_info()
    start = time.perf_counter()
    slabs = [(str(folder), [str(f) for f in files[z : z + 64]], z, compress) for z in range(0, len(files), 64)]
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(_write_slab, slabs))
        for level in range(1, 5):
            step = _CHUNK * 2**level
            list(pool.map(_write_level, [(str(folder), level, z, compress) for z in range(0, len(files), step)]))
    return {"seconds": time.perf_counter() - start}


def _write_slab(job: tuple[str, list[str], int, str | None]) -> None:
    import tifffile
    from cloudvolume import CloudVolume

    folder, names, z, compress = job
    slab = np.stack([tifffile.imread(name).T for name in names], axis=-1)
    volume = CloudVolume(f"file://{folder}/rival", compress=compress, progress=False, non_aligned_writes=True)
    volume[:, :, z : z + len(names)] = slab[..., np.newaxis]


def _write_level(job: tuple[str, int, int, str | None]) -> None:
    import tinybrain
    from cloudvolume import CloudVolume

    folder, level, z, compress = job
    finer = CloudVolume(f"file://{folder}/rival", mip=level - 1, progress=False, fill_missing=True)
    half = _CHUNK * 2
    first = z // 2 ** (level - 1)
    voxels = finer[:, :, first : min(first + half, finer.shape[2])]
    (coarse,) = tinybrain.downsample_with_averaging(np.asarray(voxels), (2, 2, 2, 1), num_mips=1)
    volume = CloudVolume(
        f"file://{folder}/rival", mip=level, compress=compress, progress=False, non_aligned_writes=True
    )
    coarse = coarse[: volume.shape[0], : volume.shape[1], :]
    volume[: coarse.shape[0], : coarse.shape[1], first // 2 : first // 2 + coarse.shape[2]] = coarse


def igneous(folder: Path) -> dict[str, float]:
    """Write the finest level as above, then let igneous make the others, on two processes."""
    import igneous.task_creation as creation
    import tifffile
    from cloudvolume import CloudVolume
    from taskqueue import LocalTaskQueue

    files = sorted((folder / "series").iterdir())
    size = (*tifffile.imread(files[0]).shape[::-1], len(files))
    info = CloudVolume.create_new_info(1, "image", "uint16", "raw", (2000,) * 3, (0, 0, 0), size, chunk_size=(64,) * 3)
    CloudVolume(f"file://{folder}/rival", info=info, progress=False).commit_info()
    start = time.perf_counter()
    slabs = [(str(folder), [str(f) for f in files[z : z + 64]], z, None) for z in range(0, len(files), 64)]
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(_write_slab, slabs))
    tasks = creation.create_downsampling_tasks(
        f"file://{folder}/rival", mip=0, num_mips=3, factor=(2, 2, 2), compress=None, fill_missing=True
    )
    queue = LocalTaskQueue(parallel=2)
    queue.insert(tasks)
    queue.execute(progress=False)
    return {"seconds": time.perf_counter() - start}


def kernels(folder: Path) -> dict[str, float]:
    """Million voxels a second of one core that tinybrain halves along three axes; igneous calls the same."""
    import tinybrain

    rates = {}
    for file in sorted(folder.glob("kernel_*.npy")):
        array = np.asfortranarray(np.load(file).transpose())
        halve = tinybrain.downsample_segmentation if "labels" in file.stem else tinybrain.downsample_with_averaging
        seconds = []
        for _ in range(15):
            start = time.thread_time()
            halve(array, (2, 2, 2), num_mips=1)
            seconds.append(time.thread_time() - start)
        rates[file.stem] = array.size / float(np.median(seconds)) / 1e6
    return rates


METHODS = {
    "cloud-volume + tinybrain, raw": lambda folder: cloud_volume(folder, None),
    "cloud-volume + tinybrain, gzip": lambda folder: cloud_volume(folder, "gzip"),
    "cloud-volume + igneous, raw": igneous,
    "kernels": kernels,
}

if __name__ == "__main__":
    print(json.dumps(METHODS[sys.argv[1]](Path(sys.argv[2]))))
