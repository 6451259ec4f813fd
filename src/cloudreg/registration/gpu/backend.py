"""The solver's backend on torch and Triton."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import array_api_compat.torch
import numpy as np
import torch
import triton
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.registration.backend import MAIN_MEMORY, Backend, Field, Surroundings, backend_of
from cloudreg.registration.gpu import images, kernels
from cloudreg.registration.gpu.bricks import BYTES_PER_VOXEL, Bricks, Piece, pack, tensor_of
from cloudreg.registration.sampling import SPLINE_MARGIN

_Result = TypeVar("_Result")

_BRICK = (4, 4, 8)
"""Voxels of a brick: one for each thread of four warps. Several voxels a thread, or more warps, need more registers
than there are."""

_NODES = 256
"""Of a velocity grid, for a program."""

_ELEMENTS = 512
"""Of an image, for a program that filters it."""

_STATISTICS, _PRODUCTS = kernels.STATISTICS.value, kernels.INDEX_PRODUCTS.value

_COMPILED = {"enable_fp_fusion": True}
"""Said, because Triton warns where it isn't."""

_PIECE_BYTES = 2**30
"""Of the target that is held on the device, in one allocation."""

_FEWEST_PIECES, _MOST_PIECES = 4, 1024
"""In how many pieces the target visits the device once it can't be held there: twice as many each time that one is
still too large."""

_ROOM_TO_PREPARE = 3
"""Times the size of target and template, with their weights, that preparing them there takes: themselves, the finest
level's and what a filter holds."""

_HEADROOM = 2.0**61
"""Largest fixed-point sum."""

_ALL_PAIRS = np.array([[0, 1, 2, 3], [1, 4, 5, 6], [2, 5, 7, 8], [3, 6, 8, 9]])
"""Where the product of two of (z, y, x, 1) stands among the ten."""

_PAIRS_OF_ROWS = np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5]])

_on_device: dict[torch.device, TorchBackend] = {}


def torch_backend_of(tensor: torch.Tensor) -> TorchBackend:
    """Return the backend that was made last for a tensor's device."""
    return _on_device[tensor.device]


class TorchBackend:
    """See `cloudreg.registration.backend.Backend`.

    Parameters
    ----------
    device
        ``"cuda"``; or ``"cpu"``, where kernels run in Triton's interpreter (set ``TRITON_INTERPRET=1`` before Triton is
        imported), which is slow and serves to test them.
    report
        Gets a line when the device's memory is too small to hold all at once.
    memory_bytes
        How much of the device's memory the images may take; by default nine tenths of what is free, which leaves room
        for the fields.
    brick
        Voxels of a brick z, y, x: their product a power of two. The interpreter takes as long for a large brick as for
        a small one.
    nodes
        Velocity nodes of a program, a power of two.
    elements
        Of an image, for a program that filters it, a power of two.
    """

    xp = array_api_compat.torch

    def __init__(
        self,
        device: str,
        *,
        report: Callable[[str], None] = lambda text: None,
        memory_bytes: int | None = None,
        brick: tuple[int, int, int] = _BRICK,
        nodes: int = _NODES,
        elements: int = _ELEMENTS,
    ) -> None:
        # An empty tensor knows the number of the device that "cuda" is.
        self.device: torch.device = torch.empty(0, device=device).device
        self._report = report
        if memory_bytes is None and self.device.type == "cuda":
            memory_bytes = int(0.9 * torch.cuda.mem_get_info(self.device)[0])
        self._memory = _Memory(memory_bytes)
        self._brick = brick
        self._nodes = nodes
        self._elements = elements
        self._kept: dict[tuple[int, ...], Any] = {}
        self._visits: int | None = None
        _on_device[self.device] = self

    def send(self, array: NDArray[Any]) -> Field:
        """See `Backend`."""
        return tensor_of(array, self.device)

    def constant(self, array: Field) -> Field:
        """See `Backend`."""
        if isinstance(array, torch.Tensor):
            return array
        return self._made_once((array,), lambda: self._memory.held(tensor_of(array, self.device)))

    def fetch(self, field: Field) -> NDArray[Any]:
        """See `Backend`."""
        return np.asarray(field.cpu().numpy())

    def home(self, nbytes: int) -> Backend:
        """See `Backend`."""
        if self._memory.fits(_ROOM_TO_PREPARE * nbytes):
            return self
        self._report(
            f"images of {nbytes / 1e9:.1f} GB are prepared in the main memory, which is slower: on the GPU that takes "
            f"{_ROOM_TO_PREPARE} times as much"
        )
        return MAIN_MEMORY

    def smoothed(self, field: Field, sigmas: Sequence[float], surroundings: Surroundings, truncate: float) -> Field:
        """See `Backend`."""
        return images.smoothed(field, sigmas, surroundings, truncate, self._elements)

    def spline_coefficients(self, image: Field, outside: float) -> Field:
        """See `Backend`."""
        return images.spline_coefficients(image, outside, SPLINE_MARGIN, self._elements)

    def resampled(self, image: Field, step: NDArray[np.float64], shape: tuple[int, int, int]) -> Field:
        """See `Backend`."""
        return images.resampled(image, step, shape, self._elements)

    def near(self, mask: Field, reach: Sequence[int]) -> Field:
        """See `Backend`."""
        return images.near(mask, reach, self._elements)

    def rfftn(self, field: Field) -> Field:
        """See `Backend`."""
        return torch.fft.rfftn(field, dim=(0, 1, 2))

    def irfftn(self, spectrum: Field, shape: tuple[int, int, int]) -> Field:
        """See `Backend`."""
        return torch.fft.irfftn(spectrum, s=shape, dim=(0, 1, 2)).contiguous()

    def evaluate(
        self,
        target: Field,
        weight: Field,
        active: Field,
        *model: Any,
    ) -> tuple[float, NDArray[np.float64], Field]:
        """See `Backend`."""
        return self._fitting(lambda: self._evaluate(self._bricks(target, weight, active), *model))

    def linearize(
        self,
        target: Field,
        weight: Field,
        active: Field,
        *model: Any,
        affine: bool = True,
    ) -> tuple[float, Field, Field, NDArray[np.float64], NDArray[np.float64]]:
        """See `Backend`."""
        return self._fitting(lambda: self._linearize(self._bricks(target, weight, active), affine, *model))

    def curved(self, hessian: Sequence[Field], velocity: Field, weight: float, momentum: Field) -> Field:
        """See `Backend`."""
        count = momentum.numel() // 3
        fields = [field.contiguous() for field in (*hessian, velocity, momentum)]
        out = torch.empty_like(fields[-1])
        kernels.curve[(triton.cdiv(count, self._nodes),)](*fields, out, weight, count, BLOCK=self._nodes, **_COMPILED)
        return out

    def gather(self, u: Field, field: Field, spacing: NDArray[np.float32]) -> Field:
        """See `Backend`."""
        out = torch.empty_like(u)
        self._over_nodes(kernels.gather, u, spacing, field.contiguous(), out)
        return out

    def scatter(self, u: Field, force: Field, spacing: NDArray[np.float32]) -> Field:
        """See `Backend`."""
        force = force.contiguous()
        # A node gets at most what all give.
        largest = force.abs().amax().to(torch.float64).clamp(min=1e-200)
        unit = _HEADROOM / (largest * (u.numel() // 3))
        sums = torch.zeros(u.shape, dtype=torch.int64, device=self.device)
        self._over_nodes(kernels.scatter, u, spacing, force, unit, sums)
        return (sums.to(torch.float64) / unit).to(torch.float32)

    def push(self, u: Field, field: Field, change: Field, field_change: Field, spacing: NDArray[np.float32]) -> Field:
        """See `Backend`."""
        out = torch.empty_like(u)
        fields = field.contiguous(), change.contiguous(), field_change.contiguous(), out
        self._over_nodes(kernels.push, u, spacing, *fields)
        return out

    def pull(self, u: Field, field: Field, force: Field, spacing: NDArray[np.float32]) -> tuple[Field, Field]:
        """See `Backend`."""
        out = torch.empty_like(u)
        self._over_nodes(kernels.pull, u, spacing, field.contiguous(), force.contiguous(), out)
        return out, self.scatter(u, force, spacing)

    def smallest_determinant(self, u: Field, spacing: NDArray[np.float32]) -> float:
        """See `Backend`."""
        programs = triton.cdiv(u.numel() // 3, self._nodes)
        # Programs of which no cell is left say infinity.
        smallest = torch.empty(programs, dtype=torch.float32, device=self.device)
        self._over_nodes(kernels.smallest_determinant, u, spacing, smallest)
        return float(smallest.amin())

    def _over_nodes(self, kernel: Any, u: Field, spacing: NDArray[np.float32], *fields: Field) -> None:
        shape = u.shape[:3]
        grid = (triton.cdiv(u.numel() // 3, self._nodes),)
        kernel[grid](u.contiguous(), *fields, *shape, *spacing.tolist(), BLOCK=self._nodes, **_COMPILED)

    def _evaluate(self, bricks: Bricks, *model: Any) -> tuple[float, NDArray[np.float64], Field]:
        values = _Model(*model)
        order = values.order
        shape = (*values.c.shape[:3], 3 * order + 2)
        unit = _HEADROOM / (max(1, bricks.count) * values.largest_moment(bricks))
        arguments, sizes = self._arguments(values, [unit])
        moments = torch.zeros(shape, dtype=torch.int64, device=self.device)
        total = torch.zeros(_STATISTICS, dtype=torch.float64, device=self.device)
        for piece in self._pieces(bricks):
            count = piece.corners.shape[0]
            sums = torch.empty((count, _STATISTICS), dtype=torch.float32, device=self.device)
            kernels.evaluate[(count,)](
                *_tensors(piece), *arguments, sums, moments, *sizes,
                ORDER=order, ROWS=triton.next_power_of_2(shape[3]), **self._constants(),
            )  # fmt: skip
            total += sums.sum(dim=0, dtype=torch.float64)
        result = total.cpu().numpy()
        return float(result[0]), result[1:], moments.to(torch.float64) / unit

    def _linearize(
        self, bricks: Bricks, affine: bool, *model: Any
    ) -> tuple[float, Field, Field, NDArray[np.float64], NDArray[np.float64]]:
        values = _Model(*model)
        units = [_HEADROOM / (max(1, bricks.count) * bound) for bound in values.largest_pull(bricks, self._top(values))]
        arguments, sizes = self._arguments(values, units)
        nodes = torch.zeros((*values.u.shape[:3], 9), dtype=torch.int64, device=self.device)
        objective = torch.zeros((), dtype=torch.float64, device=self.device)
        total = torch.zeros((9, _PRODUCTS), dtype=torch.float64, device=self.device)
        for piece in self._pieces(bricks):
            count = piece.corners.shape[0]
            sums = torch.empty(count, dtype=torch.float32, device=self.device)
            affine_sums = torch.empty((count if affine else 0, 9, _PRODUCTS), dtype=torch.float32, device=self.device)
            kernels.linearize[(count,)](
                *_tensors(piece), *arguments, sums, affine_sums, nodes, *sizes,
                ORDER=values.order, AFFINE=affine, **self._constants(),
            )  # fmt: skip
            objective += sums.sum(dtype=torch.float64)
            total += affine_sums.sum(dim=0, dtype=torch.float64)
        gradient, hessian = _by_affine(total.cpu().numpy())
        by_node = nodes.to(torch.float64)
        slopes = (by_node[..., :3] / units[0]).to(torch.float32)
        curvatures = (by_node[..., 3:] / units[1]).to(torch.float32)
        return float(objective), slopes, curvatures, gradient, hessian

    def _constants(self) -> dict[str, int]:
        return {**dict(zip(("BZ", "BY", "BX"), self._brick, strict=True)), "num_warps": 4, **_COMPILED}

    def _arguments(self, values: _Model, units: list[float]) -> tuple[tuple[torch.Tensor, ...], tuple[int, ...]]:
        atlas = self._atlas(values)
        parameters = tensor_of(values.packed(units), self.device)
        coefficients = tensor_of(values.c, self.device)
        sizes = (*atlas.shape, *values.u.shape[:3], *values.c.shape[:3])
        return (atlas, values.u.contiguous(), coefficients, parameters), sizes

    def _atlas(self, values: _Model) -> torch.Tensor:
        try:
            return self.constant(values.atlas)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_full(error):
                raise
        # With everything else out of the way; the target comes back in its turn.
        self._drop_all()
        try:
            return self.constant(values.atlas)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_full(error):
                raise
            raise InputError(
                f"expected room for the template on the GPU, {values.atlas.nbytes / 1e9:.1f} GB at this resolution, "
                "but its memory is full: free it, take a coarser --resolution, or --device cpu"
            ) from None

    def _top(self, values: _Model) -> float:
        """Return a bound of the atlas's spline coefficients."""
        atlas = self._atlas(values)
        found: float = self._made_once(
            (values.atlas, _NO_ARRAY), lambda: max(abs(float(v)) for v in torch.aminmax(atlas))
        )
        return found

    def _bricks(self, target: Field, weight: Field, active: Field) -> Bricks:
        def made() -> Bricks:
            visits = self._visits
            keep = self.device if visits is None else torch.device("cpu")
            size = _PIECE_BYTES if visits is None else BYTES_PER_VOXEL * active.shape[0] // visits
            bricks = pack(target, weight, active, self._brick, device=self.device, keep=keep, piece_bytes=size)
            if visits is None:
                for piece in bricks.pieces:
                    self._hold(piece)
            return bricks

        found: Bricks = self._made_once((target, weight, active), made)
        return found

    def _pieces(self, bricks: Bricks) -> Iterator[Piece]:
        """Yield the pieces on the device; where they don't stay there, each goes when the one after the next comes."""
        for piece in bricks.pieces:
            yield piece if self._visits is None else self._hold(piece.to(self.device))

    def _hold(self, piece: Piece) -> Piece:
        for tensor in _tensors(piece):
            self._memory.held(tensor)
        return piece

    def _made_once(self, arrays: tuple[Field, ...], make: Callable[[], Any]) -> Any:
        """Return what is made from arrays, for as long as these live."""
        key = tuple(id(array) for array in arrays)
        if key not in self._kept:
            self._kept[key] = make()
            for array in arrays:
                weakref.finalize(array, self._kept.pop, key, None).atexit = False
        return self._kept[key]

    def _fitting(self, work: Callable[[], _Result]) -> _Result:
        """Work; where the memory is full, with less of the target there at a time."""
        while True:
            try:
                return work()
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_full(error):
                    raise
            # Out here the failed attempt's tensors are gone.
            self._hold_less()

    def _hold_less(self) -> None:
        self._drop_all()
        visits = _FEWEST_PIECES if self._visits is None else 2 * self._visits
        if visits > _MOST_PIECES:
            raise InputError(
                "the GPU's memory is full even with the target sent in small pieces: free it, take a coarser "
                "--resolution, or --device cpu"
            )
        self._visits = visits
        self._report(
            f"the GPU's memory is full: the target stays in the main memory and is sent in {visits} or more "
            "pieces at every step, which is slower"
        )

    def _drop_all(self) -> None:
        self._kept.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


_NO_ARRAY = np.zeros(0)
"""Stands in keys for what is derived from an array without being its copy."""


class _Memory:
    """An allowance of memory, of which what is held is a part for as long as it lives."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._taken = 0

    def fits(self, size: int) -> bool:
        """Return whether so many bytes are left."""
        return self._limit is None or self._taken + size <= self._limit

    def held(self, tensor: torch.Tensor) -> torch.Tensor:
        size = int(tensor.numel()) * tensor.element_size()
        if not self.fits(size):
            raise torch.OutOfMemoryError(f"{size} bytes beside {self._taken} are more than the {self._limit} allowed")
        self._taken += size
        weakref.finalize(tensor, self._free, size).atexit = False
        return tensor

    def _free(self, size: int) -> None:
        self._taken -= size


def is_full(error: RuntimeError) -> bool:
    """Return whether an error is a refusal of an allocator; the CPU's has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class _Model:
    """The arguments of the loops behind the voxels, as `cloudreg.registration.kernels.evaluate` names them."""

    def __init__(
        self,
        atlas: Field,
        outside: float,
        u: Field,
        to_velocity: NDArray[np.float64],
        to_atlas: NDArray[np.float64],
        um_to_atlas: NDArray[np.float64],
        c: Field,
        to_contrast: NDArray[np.float64],
        scale: NDArray[np.float32],
        m: NDArray[np.float64],
    ) -> None:
        self.atlas, self.outside, self.u = atlas, outside, u
        self.to_velocity, self.to_atlas, self.um_to_atlas = to_velocity, to_atlas, um_to_atlas
        self.c, self.to_contrast, self.scale, self.m = c, to_contrast, scale, m
        self.order = c.shape[3] - 1

    def packed(self, units: list[float]) -> NDArray[np.float64]:
        """Return the one array of parameters that the kernels read."""
        parts = (
            self.to_velocity[:, :4], self.to_atlas, self.um_to_atlas, self.to_contrast, self.scale, self.m,
            [self.outside], self.to_velocity[:, 4], units,
        )  # fmt: skip
        return np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in parts])

    def largest_moment(self, bricks: Bricks) -> float:
        """Return a bound of one voxel's part of any moment."""
        t = max(1.0, float(np.abs(self.scale[2:4]).max()))
        power: float = t ** (2 * self.order)
        return max(1e-30, bricks.heaviest) * power * max(1.0, bricks.brightest)

    def largest_pull(self, bricks: Bricks, top: float) -> tuple[float, float]:
        """Return bounds of one voxel's part of any derivative and of any curvature."""
        t = max(1.0, float(np.abs(self.scale[2:4]).max()))
        powers = np.arange(self.order + 1)
        backend = backend_of(self.c)
        coefficients = backend.fetch(backend.xp.max(backend.xp.abs(self.c), axis=(0, 1, 2))).astype(float)
        predicted = float((coefficients * t**powers).sum())
        slope = float((coefficients * powers * t ** np.maximum(powers - 1, 0)).sum()) * float(self.scale[1])
        # The weights of a cubic spline's derivative have absolute values that add up to 1.5 at most.
        gradient = slope * 1.5 * top * float(np.abs(self.um_to_atlas).sum(axis=0).max())
        stiffness = 2 * float(self.m[1]) * bricks.heaviest
        force = stiffness * (bricks.brightest + predicted) * gradient
        return max(force, 1e-200), max(stiffness * gradient**2, 1e-200)


def _tensors(piece: Piece) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return piece.corners, piece.values, piece.weights


def _by_affine(sums: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return gradient (12,) and Hessian (12, 12) from the (9, 16) sums over (z, y, x, 1) and its products."""
    gradient = sums[:3, _ALL_PAIRS[3]].ravel()
    hessian = sums[3:][_PAIRS_OF_ROWS][:, :, _ALL_PAIRS]
    return gradient, np.ascontiguousarray(hessian.transpose(0, 2, 1, 3).reshape(12, 12))
