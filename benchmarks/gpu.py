"""Time of the solver alone on a GPU, beside the two times that it can't beat.

    python benchmarks/gpu.py                                  on the first CUDA device
    python benchmarks/gpu.py --device cpu --sizes 200 100     the same with numba's loops
    python benchmarks/gpu.py --device interpreter --sizes 800 checks that it runs, in Triton's interpreter

The images are a phantom the size of a mouse brain (13.2 x 8 x 11.4 mm) and itself, displaced and noisy; the pose is
given, so this is the solver and no search: from images in the main memory to a fit there. A first fit compiles the
kernels and is not counted; the time is the median of the repeats.

The floors are for the loops over voxels: the bytes that each pass must read at least (grey value and weight of each
active voxel, and the atlas once) over the memory's bandwidth, and the floating-point operations of each voxel over the
peak. The time of these loops, in one more fit that waits for each, is beside them; what is left of the whole is sending
the images, preparation (pyramids, spline coefficients, masks), the fields on the velocity grid, and Python.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

SIZE_UM = (13200, 8000, 11400)
BASE_UM = 100

# Additions and multiplications of a voxel, counted in the kernels' source: interpolation of the displacement 100, the
# spline 190 (with gradient 420), the contrast 110, the classes 40, and the sums (moments 30; nodes 9 x 2 x 12).
FLOPS = {"evaluate": 470, "linearize": 890}


@dataclass
class Passes:
    """What the loops over voxels did."""

    count: int = 0
    seconds: float = 0.0
    bytes: float = 0.0
    flops: float = 0.0


@contextmanager
def watched(backend: Any, passes: Passes, wait: Callable[[], None]) -> Iterator[None]:
    """Count and time the loops of a backend."""

    def counting(name: str, loop: Callable[..., Any]) -> Callable[..., Any]:
        def counted(target: Any, weight: Any, active: Any, atlas: Any, *rest: Any, **options: Any) -> Any:
            wait()
            start = time.perf_counter()
            result = loop(target, weight, active, atlas, *rest, **options)
            wait()
            passes.seconds += time.perf_counter() - start
            passes.count += 1
            passes.bytes += 8 * active.shape[0] + 4 * np.prod(atlas.shape)
            passes.flops += FLOPS[name] * active.shape[0]
            return result

        return counted

    for name in FLOPS:
        setattr(backend, name, counting(name, getattr(backend, name)))
    try:
        yield
    finally:
        for name in FLOPS:
            delattr(backend, name)


def pair(voxel_um: int, backend: Any) -> tuple[Any, Any]:
    """Return the phantom displaced, and the phantom; interpolated by a backend."""
    from cloudreg.registration.levels import Image
    from cloudreg.space import Grid

    base = max(BASE_UM, voxel_um)
    rng = np.random.default_rng(3)
    shape = [round(s / base) for s in SIZE_UM]
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    inside = ((place / np.array([0.8, 0.75, 0.8])[:, None, None, None]) ** 2).sum(axis=0) < 1
    texture = gaussian_filter(rng.standard_normal(shape), 200 / base)
    values = gaussian_filter(inside * (0.65 + 0.12 * np.clip(texture / texture.std(), -2.5, 2.5)), 60 / base)
    bend = np.stack([gaussian_filter(rng.standard_normal(shape), 900 / base) for _ in range(3)])
    bend *= 300 / base / np.abs(bend).max()
    seen = map_coordinates(values, np.indices(shape) + bend + 0.7, order=3, mode="nearest")
    images = []
    for image in (seen, values):
        step = np.diag([voxel_um / base] * 3 + [1.0])
        step[:3, 3] = (voxel_um / base - 1) / 2
        size = tuple(round(s / voxel_um) for s in SIZE_UM)
        fine = backend.fetch(backend.resampled(backend.send(image.astype(np.float32)), step, size))
        if image is seen:
            # Drawing noise for billions of voxels would take longer than all else.
            noise = np.float32(0.03) * rng.standard_normal((min(64, size[0]), *size[1:]), dtype=np.float32)
            for first in range(0, size[0], len(noise)):
                part = fine[first : first + len(noise)]
                part += noise[: len(part)]
        images.append(Image(fine, np.ones_like(fine), Grid.from_spacing(fine.shape, (float(voxel_um),) * 3)))
    return images[0], images[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit the phantom at each size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu", "interpreter"), default="cuda")
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 50, 25, 10], help="voxel sizes, um")
    parser.add_argument("--bandwidth", type=float, default=3350, help="of the memory, GB/s (an H100 SXM's by default)")
    parser.add_argument("--peak", type=float, default=67, help="float32 TFLOP/s (an H100 SXM's by default)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--iterations", nargs="+", type=int, help="most steps a level, coarse to fine")
    chosen = parser.parse_args(arguments)
    if chosen.device == "interpreter":
        os.environ["TRITON_INTERPRET"] = "1"

    from cloudreg.registration.backend import backend_for
    from cloudreg.registration.fit import choose_scales, solve
    from cloudreg.settings import RegistrationSettings

    wait: Callable[[], None] = lambda: None  # noqa: E731
    if chosen.device == "interpreter":
        from cloudreg.registration.gpu.backend import TorchBackend

        backend: Any = TorchBackend("cpu", brick=(32, 32, 32), nodes=4096)
    else:
        backend = backend_for(chosen.device, print)
        if chosen.device == "cuda":
            import torch

            wait = torch.cuda.synchronize
            print(torch.cuda.get_device_name())

    def fits(voxel_um: int, repeats: int) -> tuple[list[float], Passes, int, tuple[int, ...]]:
        target, atlas = pair(voxel_um, backend)
        # Whatever the finest level, the coarsest is about 400 um.
        levels = 1 + max(0, int(np.log2(400 / voxel_um)))
        settings = RegistrationSettings(resolution_um=voxel_um, levels=levels, find_cuts=False)
        if chosen.device == "interpreter":
            # Which is slow at many nodes.
            settings = settings.model_copy(update={"velocity_spacing_um": 2000.0, "kernel_um": 2500.0})
        if chosen.iterations:
            settings = settings.model_copy(update={"iterations": tuple(chosen.iterations)})
        scales = choose_scales(atlas.on(backend), target.grid, atlas.grid, settings)
        times = []
        for _ in range(repeats):
            wait()
            start = time.perf_counter()
            solution = solve(target, atlas, [], settings, scales=scales, initial=np.eye(4), backend=backend)
            wait()
            times.append(time.perf_counter() - start)
        passes = Passes()
        with watched(backend, passes, wait):
            solve(target, atlas, [], settings, scales=scales, initial=np.eye(4), backend=backend)
        return times, passes, len(solution.energies), target.values.shape

    if chosen.device != "interpreter":
        first = fits(400, 1)[0][0]
        print(f"a first fit, at 400 um: {first:.1f} s, most of it to compile")
    head = f"{'um':>4} {'voxels':>16} {'steps':>5} {'solve s':>8}"
    print(f"{head} {'passes':>6} {'passes s':>8} {'bytes s':>9} {'flops s':>9}")
    for voxel_um in chosen.sizes:
        times, passes, steps, shape = fits(voxel_um, chosen.repeats)
        floors = passes.bytes / chosen.bandwidth / 1e9, passes.flops / chosen.peak / 1e12
        size = " x ".join(str(n) for n in shape)
        print(
            f"{voxel_um:4d} {size:>16} {steps:5d} {np.median(times):8.2f} {passes.count:6d} {passes.seconds:8.2f} "
            f"{floors[0]:9.5f} {floors[1]:9.5f}  ({', '.join(f'{t:.2f}' for t in times)})",
            flush=True,
        )


if __name__ == "__main__":
    main()
