"""Registration cases with a known answer, made from a template: what `benchmarks/registration.py` runs on.

A case is a folder of NIfTI files (template, labels, target) whose headers tell where the voxels lie, and the truth at
points in and around the brain. Inside, positions are micrometres in the template's array order; outside, in the
files, they are NIfTI's world.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel
import nrrd
import numpy as np
from scipy.ndimage import binary_dilation, binary_fill_holes, gaussian_filter, label, map_coordinates, zoom
from scipy.spatial.transform import Rotation

KINDS = ("easy", "hard", "nissl", "wild")
_NOISE = 0.02
_WORLD = np.array([[0, 0, -1e-3], [-1e-3, 0, 0], [0, -1e-3, 0]])
"""Template micrometres (to posterior, inferior, left) to NIfTI's millimetres (to right, anterior, superior)."""


@dataclass(frozen=True)
class Source:
    """A template with its labels, and perhaps another stain of the same brain, all on one grid.

    Parameters
    ----------
    template, labels, nissl
        (z, y, x), with axes that run to posterior, inferior and left.
    voxel_um
        Of all of them.
    ventricles
        Where the template's ventricles are.
    """

    template: np.ndarray
    labels: np.ndarray
    nissl: np.ndarray | None
    voxel_um: float
    ventricles: np.ndarray

    @property
    def brain(self) -> np.ndarray:
        """Where the template shows tissue, holes filled."""
        bright = gaussian_filter(self.template.astype(np.float32), 1) > 0.1 * np.quantile(self.template, 0.99)
        parts, _ = label(bright)
        return binary_fill_holes(parts == np.bincount(parts.ravel())[1:].argmax() + 1)


def read_source(template: Path, labels: Path, nissl: Path | None, ontology: Path | None) -> Source:
    """Read NRRD files; the ontology (Allen's JSON) tells which labels are ventricles."""
    values, header = nrrd.read(str(template))
    ids = nrrd.read(str(labels))[0]
    ventricular = _below(json.loads(ontology.read_text()), "VS") if ontology else []
    voxel = float(np.linalg.norm(header["space directions"][0]))
    stain = None if nissl is None else nrrd.read(str(nissl))[0]
    return Source(values, ids, stain, voxel, np.isin(ids, ventricular))


def _below(node: dict, acronym: str, inside: bool = False) -> list[int]:
    inside = inside or node["acronym"] == acronym
    ids = [node["id"]] if inside else []
    return ids + [i for child in node["children"] for i in _below(child, acronym, inside)]


@dataclass(frozen=True)
class Truth:
    """The map from target to template: an affine, then any number of displacements, one after the other.

    Parameters
    ----------
    linear, shift_um, middle_um
        The affine: template position = linear (y - middle - shift) + middle.
    displacements
        Each (3, z, y, x), um, on the template's grid padded by ``margin`` voxels.
    tear
        Opening of the tissue, in the target; None where it is whole.
    """

    linear: np.ndarray
    shift_um: np.ndarray
    middle_um: np.ndarray
    displacements: list[np.ndarray]
    margin: int
    voxel_um: float
    tear: Tear | None = None

    def __call__(self, target_um: np.ndarray) -> np.ndarray:
        """Take (n, 3) target um to template um; NaN in the tear."""
        points = target_um if self.tear is None else self.tear.closed(target_um)
        points = (points - self.middle_um - self.shift_um) @ self.linear.T + self.middle_um
        for u in self.displacements:
            index = (points / self.voxel_um + self.margin).T
            points = points + np.stack([map_coordinates(c, index, order=1, mode="nearest") for c in u], axis=1)
        return points


@dataclass(frozen=True)
class Tear:
    """A wedge that opens from the brain's surface: two sides stand apart, what was between them is background.

    Parameters
    ----------
    at_um
        Point of the surface where the wedge is widest.
    into
        Unit vector into the brain.
    across
        Unit vector from one side to the other.
    depth_um, half_width_um, length_um
        How far the wedge reaches inward, half its width at the surface, and its length along the surface.
    """

    at_um: np.ndarray
    into: np.ndarray
    across: np.ndarray
    depth_um: float
    half_width_um: float
    length_um: float

    def closed(self, points: np.ndarray) -> np.ndarray:
        """Return where points lay before the tissue tore; NaN for points in the gap."""
        offset = points - self.at_um
        deep, side = offset @ self.into, offset @ self.across
        along = offset @ np.cross(self.into, self.across)
        window = np.where(np.abs(along) < self.length_um / 2, np.cos(np.pi * along / self.length_um) ** 2, 0)
        half = self.half_width_um * np.clip(1 - deep / self.depth_um, 0, 1.5) * window
        beyond = np.abs(side) - half
        back = half * np.exp(-np.maximum(beyond, 0) / 700)
        moved = points - (np.sign(side) * back)[:, None] * self.across
        return np.where((beyond < 0)[:, None], np.nan, moved)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Return Gaussian noise smoothed to ``sigma`` voxels, of unit standard deviation."""
    noise = gaussian_filter(rng.standard_normal(shape).astype(np.float32), sigma)
    return noise / noise.std()


def exponential(velocity: np.ndarray, squarings: int = 7) -> np.ndarray:
    """Return the displacement of the flow of a stationary velocity, both (3, z, y, x) voxels."""
    u = velocity / 2**squarings
    here = np.indices(u.shape[1:], dtype=np.float32)
    for _ in range(squarings):
        u = u + np.stack([map_coordinates(c, here + u, order=1, mode="nearest") for c in u])
    return u


def random_flow(
    rng: np.random.Generator, shape: tuple[int, ...], smooth: float, peak: float, brain: np.ndarray
) -> np.ndarray:
    """Return the displacement (3, z, y, x), in voxels, of a random flow whose largest one in the brain is ``peak``."""
    velocity = np.stack([smooth_noise(rng, shape, smooth) for _ in range(3)])
    velocity *= peak / np.sqrt((velocity**2).sum(axis=0))[brain].max()
    u = exponential(velocity)
    return u * np.float32(1)


def make_case(folder: Path, source: Source, kind: str, seed: int, *, lost: float | None = None, finer: int = 1) -> None:
    """Write a case.

    Parameters
    ----------
    folder
        New.
    source
        Template and labels.
    kind
        One of `KINDS`.
    seed
        Of everything that is random.
    lost
        Fraction of the brain's planes that is zeroed, all together; by default a twentieth in ``hard``, none elsewhere.
    finer
        How many times as fine the images are: the template's spline, and the target as seen through the same map from
        that spline, each of its voxels with a noise of its own.
    """
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    margin = 12
    voxel = source.voxel_um
    brain = np.pad(source.brain, margin)
    middle = (np.array(source.template.shape) - 1) / 2 * voxel
    turn = rng.standard_normal(3)
    turn *= np.deg2rad(8) / np.linalg.norm(turn)
    scales = 1 + rng.permutation([-0.06, 0.0, 0.06]) + rng.uniform(-0.02, 0.02)
    linear = Rotation.from_rotvec(turn).as_matrix() @ np.diag(scales)
    shift = rng.choice([-400.0, 400.0], 3)
    if kind == "wild":
        flows = [
            random_flow(rng, brain.shape, 1200 / voxel, 500 / voxel, brain),
            random_flow(rng, brain.shape, 350 / voxel, 180 / voxel, brain),
            _swollen(source, margin, voxel),
            _slipped(brain.shape, voxel, rng),
        ]
    else:
        flows = [random_flow(rng, brain.shape, 800 / voxel, rng.uniform(550, 700) / voxel, brain)]
    tear = _tear(source, middle, shift, rng) if kind == "hard" else None
    truth = Truth(linear, shift, middle, [u * voxel for u in flows], margin, voxel, tear)

    letters = "asr"
    spacing = np.full(3, voxel)
    if kind == "hard":
        letters = ["asr", "psl", "sal", "ial", "lsp", "rip", "las", "rai"][seed % 8]
        # Sections: the third template axis is cut thickest.
        spacing = np.array([75.0, 75.0, 120.0])
    spacing /= finer
    index_to_um, shape = _target_frame(source, letters, spacing)
    points = _positions(shape) @ index_to_um[:3, :3].T + index_to_um[:3, 3]
    if finer > 1:
        # Half the memory of what may be a hundred million points; they are still good to a nanometre.
        points = points.astype(np.float32)
    there = truth(points)
    gap = np.isnan(there).any(axis=1)
    position = np.where(gap[:, None], -1e6, there)
    at = (position / voxel).T
    inside = map_coordinates(source.brain.astype(np.float32), at, order=1) > 0.5
    stain = source.nissl if kind == "nissl" else source.template
    assert stain is not None
    clean = map_coordinates(stain.astype(np.float32), at, order=3, mode="constant").reshape(shape)
    clean = np.maximum(clean, 0) / np.quantile(stain[source.brain], 0.95)
    image, good = _seen(kind, clean, inside.reshape(shape), at, source, rng, spacing)
    if lost is None:
        lost = 0.05 if kind == "hard" else 0.0
    if lost > 0:
        # What is lost is 0, and nothing else is.
        image = np.clip(image, 0.002, None)
        slab = _lost_slab(inside.reshape(shape), lost, rng)
        image[slab] = 0
        good[slab] = False
    seen = np.clip(np.round(1000 * image), 0, 65535).astype(np.uint16)

    folder.mkdir(parents=True)
    frame = np.diag([voxel / finer] * 3 + [1.0])
    frame[:3, 3] = (1 / finer - 1) / 2 * voxel
    template_frame = _frame(frame)
    _save(folder / "template.nii.gz", _refined(source.template, finer), template_frame)
    _save(folder / "labels.nii.gz", _repeated(source.labels.astype(np.uint32), finer), template_frame)
    _save(folder / "template_mask.nii.gz", _repeated(source.brain.astype(np.uint8), finer), template_frame)
    _save(folder / "target.nii.gz", seen, _frame(index_to_um))
    if not good.all():
        _save(folder / "target_mask.nii.gz", good.astype(np.uint8), _frame(index_to_um))
    wanted = np.flatnonzero(binary_dilation(inside.reshape(shape), iterations=3 * finer))[:: finer**3]
    np.save(folder / "points.npy", points[wanted] @ _WORLD.T)
    np.savez_compressed(
        folder / "truth.npz",
        template_um=there[wanted].astype(np.float32),
        inside=inside[wanted],
        observed=good.ravel()[wanted],
    )
    (folder / "case.json").write_text(json.dumps({"kind": kind, "seed": seed, "letters": letters}))


def _refined(image: np.ndarray, factor: int) -> np.ndarray:
    """Return the spline of an image at voxels ``factor`` times as small."""
    if factor == 1:
        return image
    values = zoom(image.astype(np.float32), factor, order=3, mode="nearest", grid_mode=True)
    return np.clip(np.round(values), 0, 65535).astype(np.uint16)


def _repeated(image: np.ndarray, factor: int) -> np.ndarray:
    return image.repeat(factor, 0).repeat(factor, 1).repeat(factor, 2)


def to_template_um(world_mm: np.ndarray) -> np.ndarray:
    """Take NIfTI's world to micrometres in the template's array order."""
    return np.asarray(world_mm @ np.linalg.inv(_WORLD).T)


def _positions(shape: tuple[int, ...]) -> np.ndarray:
    return np.indices(shape).reshape(3, -1).T.astype(float)


def _frame(index_to_um: np.ndarray) -> np.ndarray:
    world = np.eye(4)
    world[:3] = _WORLD @ index_to_um[:3]
    return world


def _save(path: Path, values: np.ndarray, frame: np.ndarray) -> None:
    image = nibabel.Nifti1Image(values, frame)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def _target_frame(source: Source, letters: str, spacing: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return index to um (in template axes) and the shape of a grid that holds the template with room around it."""
    size = np.array(source.template.shape) * source.voxel_um
    room = 1.12 * size + 600
    low, high = size / 2 - room / 2, size / 2 + room / 2
    matrix = np.eye(4)
    shape = []
    axis_of = {"a": 0, "p": 0, "s": 1, "i": 1, "r": 2, "l": 2}
    matrix[:3, :3] = 0
    for k, letter in enumerate(letters):
        axis = axis_of[letter]
        count = int(room[axis] / spacing[axis])
        forward = letter in "asr"
        matrix[axis, k] = spacing[axis] if forward else -spacing[axis]
        matrix[axis, 3] = low[axis] if forward else high[axis]
        shape.append(count)
    return matrix, tuple(shape)


def _swollen(source: Source, margin: int, voxel: float) -> np.ndarray:
    """Return a displacement that makes the ventricles larger: tissue is pushed away from them (here: pulled back)."""
    ventricle = gaussian_filter(np.pad(source.ventricles.astype(np.float32), margin), 300 / voxel)
    slope = np.stack(np.gradient(ventricle))
    velocity = slope * (200 / voxel) / max(np.sqrt((slope**2).sum(axis=0)).max(), 1e-6)
    return exponential(velocity)


def _slipped(shape: tuple[int, ...], voxel: float, rng: np.random.Generator) -> np.ndarray:
    """Return a displacement that shifts one hemisphere along the midline."""
    across = (np.arange(shape[2]) - (shape[2] - 1) / 2) * voxel
    step = 0.5 * (1 + np.tanh(across / 400))
    velocity = np.zeros((3, *shape))
    velocity[0] = rng.choice([-1, 1]) * 200 / voxel * step
    velocity[1] = rng.choice([-1, 1]) * 100 / voxel * step
    return exponential(velocity)


def _tear(source: Source, middle: np.ndarray, shift: np.ndarray, rng: np.random.Generator) -> Tear:
    """Return a tear 2.5 mm deep that starts somewhere on the dorsal surface."""
    brain = source.brain
    z = int(rng.uniform(0.35, 0.7) * brain.shape[0])
    x = int(rng.uniform(0.3, 0.7) * brain.shape[2])
    y = int(np.argmax(brain[z, :, x]))
    angle = rng.uniform(0, np.pi)
    across = np.array([np.cos(angle), 0.0, np.sin(angle)])
    at = np.array([z, y, x]) * source.voxel_um + shift
    return Tear(at, np.array([0.0, 1.0, 0.0]), across, 2500.0, 200.0, 4000.0)


def _seen(
    kind: str,
    clean: np.ndarray,
    inside: np.ndarray,
    at: np.ndarray,
    source: Source,
    rng: np.random.Generator,
    spacing: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the image as the microscope would give it, in units of bright tissue, and where it is good."""
    good = np.ones(clean.shape, dtype=bool)
    if kind == "nissl":
        return clean + 0.05 + _NOISE * rng.standard_normal(clean.shape), good
    if kind == "easy":
        return np.clip(clean, 0, None) ** 0.6 + 0.05 + _NOISE * rng.standard_normal(clean.shape), good
    if kind == "wild":
        image = np.clip(clean, 0, None) ** 0.6 + 0.05 + _NOISE * rng.standard_normal(clean.shape)
        where = np.argwhere(inside)
        here = np.indices(clean.shape).reshape(3, -1).T * spacing
        for _ in range(60):
            centre = where[rng.integers(len(where))] * spacing
            radius = rng.uniform(150, 400)
            ball = (((here - centre) ** 2).sum(axis=1) < radius**2).reshape(clean.shape)
            image[ball] = rng.choice([0.0, 2.5])
            good &= ~ball
        outliers = rng.random(clean.shape) < 0.003
        image[outliers] = rng.uniform(0, 3, int(outliers.sum()))
        return image, good
    # Hard: a contrast that rises, then falls; regions of their own brightness; uneven light; damage.
    image = np.clip(_turning_over(clean), 0, None)
    values, region = np.unique(source.labels, return_inverse=True)
    offsets = 0.04 * rng.standard_normal(values.size)
    offsets[values == 0] = 0
    shifts = gaussian_filter(offsets[region.reshape(source.labels.shape)].astype(np.float32), 0.7)
    image += map_coordinates(shifts, at, order=1, mode="constant").reshape(clean.shape)
    bias = np.exp(0.25 * smooth_noise(rng, clean.shape, 2500 / spacing.mean()))
    image = np.clip(image, 0, None) * bias + 0.05 + _NOISE * rng.standard_normal(clean.shape)
    where = np.argwhere(inside)
    here = np.indices(clean.shape).reshape(3, -1).T
    centre = where[rng.integers(len(where))]
    radius = 800 / np.cbrt(np.prod(spacing))
    blob = (((here - centre) ** 2).sum(axis=1) < radius**2).reshape(clean.shape)
    image[blob] = 6.0
    good &= ~blob
    return image, good


def _turning_over(clean: np.ndarray) -> np.ndarray:
    """Return a cubic of the clean image that is 0 in the dark, largest in common tissue, and falls in bright tissue."""
    grey = np.array([0.7, 1.1])
    rows = [grey[0] ** np.arange(1, 4), np.arange(1, 4) * grey[0] ** np.arange(3), grey[1] ** np.arange(1, 4)]
    a, b, c = np.linalg.solve(np.array(rows), [1.1, 0.0, 0.7])
    return np.asarray(clean * (a + clean * (b + clean * c)))


def _lost_slab(inside: np.ndarray, lost: float, rng: np.random.Generator) -> tuple[slice, ...]:
    """Return planes along the longest axis of the brain, in its middle four fifths, that are lost together."""
    low = np.argwhere(inside).min(axis=0)
    high = np.argwhere(inside).max(axis=0) + 1
    axis = int(np.argmax(high - low))
    length = high[axis] - low[axis]
    count = max(1, round(lost * length))
    first = low[axis] + int(rng.uniform(0.1, 0.9 - lost) * length)
    return tuple(slice(first, first + count) if k == axis else slice(None) for k in range(3))
