"""The hot loops as Triton kernels: those of `cloudreg.registration.kernels` and of `cloudreg.registration.flow`.

One program takes one brick of target voxels, so that its reads lie close together and what it adds to the nodes of a
grid can be summed inside the brick first: a brick sees few nodes, each of which gets one atomic addition a brick and
component instead of one a voxel. These additions are of 64-bit integers in a fixed-point unit that the caller derives
from bounds of the summands. Integers add up to the same whatever the order, so a result is the same bit for bit each
time, which floating-point atomics would not give.

Positions are computed in float64, as on the CPU, everything else of a voxel in float32.
"""

# Kernels are compiled, not run; their arguments are pointers and sizes, and most need only some of what others return.
# ruff: noqa: ANN001, ANN201, ANN202, RUF059
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

# Where each matrix begins in the one array of parameters.
TO_VELOCITY = tl.constexpr(0)
TO_ATLAS = tl.constexpr(12)
UM_TO_ATLAS = tl.constexpr(24)
TO_CONTRAST = tl.constexpr(33)
SCALE = tl.constexpr(39)
MIXTURE = tl.constexpr(44)
OUTSIDE = tl.constexpr(52)
SPACING = tl.constexpr(53)
UNITS = tl.constexpr(56)
"""One or two factors from a sum to its fixed-point integer."""

STATISTICS = tl.constexpr(9)
"""Sums that `evaluate` leaves for each brick."""

INDEX_PRODUCTS = tl.constexpr(16)
"""Products of two of an index's (z, y, x, 1), 10 and padding. For each brick `linearize` leaves the sums by the affine:
these with each of 3 parts of the gradient and 6 of the Hessian."""

# One compiled kernel serves images of all sizes.
_NODE_SIZES = ["nz", "ny", "nx"]
_SIZES = [*_NODE_SIZES, "mz", "my", "mx", "kz", "ky", "kx"]


@triton.jit
def _affine(parameters, at, z, y, x):
    """Apply one row of a matrix to an index."""
    return (
        tl.load(parameters + at) * z
        + tl.load(parameters + at + 1) * y
        + tl.load(parameters + at + 2) * x
        + tl.load(parameters + at + 3)
    )


@triton.jit
def _cell(position, count):
    """Lower node, fraction, and whether the position is free to move."""
    lower = tl.minimum(tl.maximum(position, 0.0), (count - 2).to(tl.float64)).to(tl.int32)
    fraction = tl.minimum(tl.maximum(position - lower, 0.0), 1.0).to(tl.float32)
    free = (position > 0) & (position < count - 1)
    return lower, fraction, free


@triton.jit
def _corners(iz, iy, ix, fz, fy, fx, ny, nx):
    """The eight nodes around each of n positions, (8, n), with their weights along z, y and x.

    Neighbours are the rows of one array here and in `_spline`, each of which a thread holds whole: one read in the
    program for all of them. The compiler takes a time that grows with the square of the number of reads.
    """
    corner = tl.arange(0, 8)[:, None]
    oz, oy, ox = corner // 4, corner // 2 % 2, corner % 2
    node = ((iz[None, :].to(tl.int64) + oz) * ny + iy[None, :] + oy) * nx + ix[None, :] + ox
    wz = tl.where(oz == 1, fz[None, :], 1 - fz[None, :])
    wy = tl.where(oy == 1, fy[None, :], 1 - fy[None, :])
    wx = tl.where(ox == 1, fx[None, :], 1 - fx[None, :])
    return node, wz, wy, wx


@triton.jit
def _component(field, node, width, live):
    """The first component at ``field`` of a field of ``width`` components, at nodes (8, n)."""
    return tl.load(field + node * width, mask=live[None, :], other=0.0)


@triton.jit
def _slopes(at, wz, wy, wx):
    """Derivatives along z, y, x of an interpolant, per voxel, from its values at the corners (8, n)."""
    corner = tl.arange(0, 8)[:, None]
    dz = tl.sum(tl.where(corner // 4 == 1, at, -at) * (wy * wx), axis=0)
    dy = tl.sum(tl.where(corner // 2 % 2 == 1, at, -at) * (wz * wx), axis=0)
    dx = tl.sum(tl.where(corner % 2 == 1, at, -at) * (wz * wy), axis=0)
    return dz, dy, dx


@triton.jit
def _weights(t):
    """Weights of the four spline nodes around a position."""
    s = 1 - t
    w0 = s * s * s * (1 / 6)
    w1 = 2 / 3 - t * t * (1 - 0.5 * t)
    w3 = t * t * t * (1 / 6)
    return w0, w1, 1 - w0 - w1 - w3, w3


@triton.jit
def _slopes_of_weights(t):
    """Derivatives of `_weights`."""
    s = 1 - t
    d0 = -0.5 * s * s
    d1 = t * (1.5 * t - 2.0)
    d3 = 0.5 * t * t
    return d0, d1, -d0 - d1 - d3, d3


@triton.jit
def _chosen(index, w):
    """One of four weights (n,) for each row's index."""
    low = tl.where(index == 0, w[0][None, :], w[1][None, :])
    return tl.where(index < 2, low, tl.where(index == 2, w[2][None, :], w[3][None, :]))


@triton.jit
def _spline(atlas, az, ay, ax, mz, my, mx, outside, live, GRADIENT: tl.constexpr):
    """Value and index-gradient of the atlas; constant outside. Rows along x are summed first, then the 16 of them."""
    inside = live & (az >= 1) & (ay >= 1) & (ax >= 1) & (az < mz - 2) & (ay < my - 2) & (ax < mx - 2)
    az = tl.where(inside, az, 1.0)
    ay = tl.where(inside, ay, 1.0)
    ax = tl.where(inside, ax, 1.0)
    iz, iy, ix = az.to(tl.int32), ay.to(tl.int32), ax.to(tl.int32)
    tz, ty, tx = (az - iz).to(tl.float32), (ay - iy).to(tl.float32), (ax - ix).to(tl.float32)
    wz, wy, wx = _weights(tz), _weights(ty), _weights(tx)
    plane, line = tl.arange(0, 16)[:, None] // 4, tl.arange(0, 16)[:, None] % 4
    # 64 bits: a plane may hold millions of voxels.
    row = ((iz[None, :] - 1 + plane).to(tl.int64) * my + (iy[None, :] - 1 + line)) * mx + (ix[None, :] - 1)
    here = inside[None, :]
    c0 = tl.load(atlas + row, mask=here, other=0.0)
    c1 = tl.load(atlas + row + 1, mask=here, other=0.0)
    c2 = tl.load(atlas + row + 2, mask=here, other=0.0)
    c3 = tl.load(atlas + row + 3, mask=here, other=0.0)
    along = c0 * wx[0][None, :] + c1 * wx[1][None, :] + c2 * wx[2][None, :] + c3 * wx[3][None, :]
    across_z, across_y = _chosen(plane, wz), _chosen(line, wy)
    value = tl.sum(across_z * across_y * along, axis=0)
    gz = tz * 0
    gy = tz * 0
    gx = tz * 0
    if GRADIENT:
        ez, ey, ex = _slopes_of_weights(tz), _slopes_of_weights(ty), _slopes_of_weights(tx)
        slope = c0 * ex[0][None, :] + c1 * ex[1][None, :] + c2 * ex[2][None, :] + c3 * ex[3][None, :]
        gz = tl.sum(_chosen(plane, ez) * across_y * along, axis=0)
        gy = tl.sum(across_z * _chosen(line, ey) * along, axis=0)
        gx = tl.sum(across_z * across_y * slope, axis=0)
    return tl.where(inside, value, outside), gz, gy, gx


@triton.jit
def _polynomial(c, iz, iy, ix, fz, fy, fx, ny, nx, t, live, ORDER: tl.constexpr):
    """Contrast F(t) and F'(t) with coefficients interpolated at a contrast-grid position."""
    value = t * 0
    slope = t * 0
    node, wz, wy, wx = _corners(iz, iy, ix, fz, fy, fx, ny, nx)
    share = wz * wy * wx
    for step in tl.static_range(ORDER + 1):
        slope = slope * t + value
        value = value * t + tl.sum(share * _component(c + (ORDER - step), node, ORDER + 1, live), axis=0)
    return value, slope


@triton.jit
def _brick(corners, BZ: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr):
    """Voxel indices z, y, x of this program's brick, and where it begins."""
    brick = tl.program_id(0)
    z0 = tl.load(corners + brick * 3)
    y0 = tl.load(corners + brick * 3 + 1)
    x0 = tl.load(corners + brick * 3 + 2)
    voxel = tl.arange(0, BZ * BY * BX)
    return z0 + voxel // (BY * BX), y0 + voxel // BX % BY, x0 + voxel % BX, z0, y0, x0


@triton.jit
def _predict(
    z, y, x, j, live, atlas, u, c, parameters, mz, my, mx, nz, ny, nx, kz, ky, kx,
    ORDER: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """What the model says of each voxel: atlas value and gradient, contrast, posteriors, and its velocity cell."""
    z, y, x = z.to(tl.float64), y.to(tl.float64), x.to(tl.float64)
    iz, fz, free_z = _cell(_affine(parameters, TO_VELOCITY, z, y, x), nz)
    iy, fy, free_y = _cell(_affine(parameters, TO_VELOCITY + 4, z, y, x), ny)
    ix, fx, free_x = _cell(_affine(parameters, TO_VELOCITY + 8, z, y, x), nx)
    node, wz, wy, wx = _corners(iz, iy, ix, fz, fy, fx, ny, nx)
    share = wz * wy * wx
    around_z = _component(u, node, 3, live)
    around_y = _component(u + 1, node, 3, live)
    around_x = _component(u + 2, node, 3, live)
    uz = tl.sum(share * around_z, axis=0)
    uy = tl.sum(share * around_y, axis=0)
    ux = tl.sum(share * around_x, axis=0)
    m = parameters + UM_TO_ATLAS
    az = _affine(parameters, TO_ATLAS, z, y, x) + tl.load(m) * uz + tl.load(m + 1) * uy + tl.load(m + 2) * ux
    ay = _affine(parameters, TO_ATLAS + 4, z, y, x) + tl.load(m + 3) * uz + tl.load(m + 4) * uy + tl.load(m + 5) * ux
    ax = _affine(parameters, TO_ATLAS + 8, z, y, x) + tl.load(m + 6) * uz + tl.load(m + 7) * uy + tl.load(m + 8) * ux
    outside = tl.load(parameters + OUTSIDE).to(tl.float32)
    value, dz, dy, dx = _spline(atlas, az, ay, ax, mz, my, mx, outside, live, GRADIENT)
    centre = tl.load(parameters + SCALE).to(tl.float32)
    spread = tl.load(parameters + SCALE + 1).to(tl.float32)
    lowest = tl.load(parameters + SCALE + 2).to(tl.float32)
    highest = tl.load(parameters + SCALE + 3).to(tl.float32)
    t = tl.minimum(tl.maximum((value - centre) * spread, lowest), highest)
    g = parameters + TO_CONTRAST
    cz, hz, _fz = _cell(tl.load(g) * z + tl.load(g + 1), kz)
    cy, hy, _fy = _cell(tl.load(g + 2) * y + tl.load(g + 3), ky)
    cx, hx, _fx = _cell(tl.load(g + 4) * x + tl.load(g + 5), kx)
    predicted, slope = _polynomial(c, cz, cy, cx, hz, hy, hx, ky, kx, t, live, ORDER)
    e = j - predicted
    p = parameters + MIXTURE
    a = j - tl.load(p + 6).to(tl.float32)
    b = j - tl.load(p + 7).to(tl.float32)
    match = tl.load(p).to(tl.float32) * tl.exp(-e * e * tl.load(p + 1).to(tl.float32))
    artifact = tl.load(p + 2).to(tl.float32) * tl.exp(-a * a * tl.load(p + 3).to(tl.float32))
    background = tl.load(p + 4).to(tl.float32) * tl.exp(-b * b * tl.load(p + 5).to(tl.float32))
    total = match + artifact + background + 1e-12
    pulled = (t != lowest) & (t != highest) & ((dz != 0) | (dy != 0) | (dx != 0))
    return (
        value, t, dz, dy, dx, slope * spread, pulled, e, match / total, artifact / total, background / total, total,
        iz, iy, ix, fz, fy, fx, free_z, free_y, free_x, around_z, around_y, around_x, wz, wy, wx,
    )  # fmt: skip


@triton.jit
def _node(parameters, at, index, count):
    """Contrast node nearest to a voxel index along one axis."""
    position = tl.load(parameters + TO_CONTRAST + at) * index + tl.load(parameters + TO_CONTRAST + at + 1)
    return tl.minimum(tl.maximum(position + 0.5, 0.0).to(tl.int32), count - 1)


@triton.jit
def _stacked(row, number, values, below):
    """Put values into one row of a matrix. Many sums of one kind are one sum over such a matrix."""
    return tl.where(row == number, values[None, :], below)


@triton.jit(do_not_specialize=_SIZES)
def evaluate(
    corners, values, weights, atlas, u, c, parameters, sums, moments,
    mz, my, mx, nz, ny, nx, kz, ky, kx,
    ORDER: tl.constexpr, ROWS: tl.constexpr, BZ: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    """The objective and the statistics of each brick, and the moments at each contrast node in fixed point."""
    brick = tl.program_id(0).to(tl.int64)
    z, y, x, z0, y0, x0 = _brick(corners, BZ, BY, BX)
    here = brick * (BZ * BY * BX) + tl.arange(0, BZ * BY * BX)
    j = tl.load(values + here)
    w = tl.load(weights + here)
    (
        value, t, dz, dy, dx, slope, pulled, e, match, artifact, background, total,
        iz, iy, ix, fz, fy, fx, free_z, free_y, free_x, around_z, around_y, around_x, wz, wy, wx,
    ) = _predict(
        z, y, x, j, w > 0, atlas, u, c, parameters, mz, my, mx, nz, ny, nx, kz, ky, kx, ORDER, False
    )  # fmt: skip
    tissue = tl.where(value > tl.load(parameters + SCALE + 4).to(tl.float32), w * match, 0.0)
    row = tl.arange(0, 16)[:, None]
    terms = _stacked(row, 0, -w * tl.log(total), tl.zeros((16, BZ * BY * BX), tl.float32))
    terms = _stacked(row, 1, tissue, terms)
    terms = _stacked(row, 2, tissue * e * e, terms)
    terms = _stacked(row, 3, w * artifact, terms)
    terms = _stacked(row, 4, w * artifact * j, terms)
    terms = _stacked(row, 5, w * background, terms)
    terms = _stacked(row, 6, w * background * j, terms)
    terms = _stacked(row, 7, w * artifact * j * j, terms)
    terms = _stacked(row, 8, w * background * j * j, terms)
    out = sums + brick * STATISTICS + tl.arange(0, 16)
    tl.store(out, tl.sum(terms, axis=1), mask=tl.arange(0, 16) < STATISTICS)
    row = tl.arange(0, ROWS)[:, None]
    power = w * match
    powers = tl.zeros((ROWS, BZ * BY * BX), tl.float32)
    for k in tl.static_range(2 * ORDER + 1):
        powers = _stacked(row, k, power, powers)
        if k <= ORDER:
            powers = _stacked(row, 2 * ORDER + 1 + k, power * j, powers)
        power *= t
    unit = tl.load(parameters + UNITS)
    component = tl.arange(0, ROWS)
    wanted = component < 3 * ORDER + 2
    own_z = _node(parameters, 0, z.to(tl.float64), kz)
    own_y = _node(parameters, 2, y.to(tl.float64), ky)
    own_x = _node(parameters, 4, x.to(tl.float64), kx)
    for node_z in range(_node(parameters, 0, z0, kz), _node(parameters, 0, z0 + BZ - 1, kz) + 1):
        for node_y in range(_node(parameters, 2, y0, ky), _node(parameters, 2, y0 + BY - 1, ky) + 1):
            for node_x in range(_node(parameters, 4, x0, kx), _node(parameters, 4, x0 + BX - 1, kx) + 1):
                own = (own_z == node_z) & (own_y == node_y) & (own_x == node_x)
                node = moments + ((node_z * ky + node_y) * kx + node_x) * (3 * ORDER + 2) + component
                added = tl.sum(tl.where(own[None, :], powers, 0.0), axis=1).to(tl.float64)
                tl.atomic_add(node, tl.floor(added * unit + 0.5).to(tl.int64), mask=wanted, sem="relaxed")


@triton.jit(do_not_specialize=_SIZES)
def linearize(
    corners, values, weights, atlas, u, c, parameters, sums, affine_sums, nodes,
    mz, my, mx, nz, ny, nx, kz, ky, kx,
    ORDER: tl.constexpr, BZ: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr, AFFINE: tl.constexpr,
):  # fmt: skip
    """The objective and (wanted) the affine's derivatives of each brick, and those at each node in fixed point."""
    brick = tl.program_id(0).to(tl.int64)
    z, y, x, _z, _y, _x = _brick(corners, BZ, BY, BX)
    here = brick * (BZ * BY * BX) + tl.arange(0, BZ * BY * BX)
    j = tl.load(values + here)
    w = tl.load(weights + here)
    (
        value, t, dz, dy, dx, slope, pulled, e, match, artifact, background, total,
        iz, iy, ix, fz, fy, fx, free_z, free_y, free_x, around_z, around_y, around_x, wz, wy, wx,
    ) = _predict(
        z, y, x, j, w > 0, atlas, u, c, parameters, mz, my, mx, nz, ny, nx, kz, ky, kx, ORDER, True
    )  # fmt: skip
    tl.store(sums + brick, -tl.sum(w * tl.log(total), axis=0))
    m = parameters + UM_TO_ATLAS
    # Gradient of the prediction by position, per um.
    qz = slope * (tl.load(m) * dz + tl.load(m + 3) * dy + tl.load(m + 6) * dx).to(tl.float32)
    qy = slope * (tl.load(m + 1) * dz + tl.load(m + 4) * dy + tl.load(m + 7) * dx).to(tl.float32)
    qx = slope * (tl.load(m + 2) * dz + tl.load(m + 5) * dy + tl.load(m + 8) * dx).to(tl.float32)
    pulled = pulled & (w > 0)
    stiffness = tl.where(pulled, w * match * (2 * tl.load(parameters + MIXTURE + 1)).to(tl.float32), 0.0)
    force = -stiffness * e
    component = tl.arange(0, 16)
    row = component[:, None]
    terms = _stacked(row, 0, force * qz, tl.zeros((16, BZ * BY * BX), tl.float32))
    terms = _stacked(row, 1, force * qy, terms)
    terms = _stacked(row, 2, force * qx, terms)
    terms = _stacked(row, 3, stiffness * qz * qz, terms)
    terms = _stacked(row, 4, stiffness * qz * qy, terms)
    terms = _stacked(row, 5, stiffness * qz * qx, terms)
    terms = _stacked(row, 6, stiffness * qy * qy, terms)
    terms = _stacked(row, 7, stiffness * qy * qx, terms)
    terms = _stacked(row, 8, stiffness * qx * qx, terms)
    unit = tl.where(component < 3, tl.load(parameters + UNITS), tl.load(parameters + UNITS + 1))
    wanted = component < 9
    # Nodes about the voxels that pull; an empty range where none does.
    first_z = tl.min(tl.where(pulled, iz, nz), axis=0)
    first_y = tl.min(tl.where(pulled, iy, ny), axis=0)
    first_x = tl.min(tl.where(pulled, ix, nx), axis=0)
    end_z = tl.max(tl.where(pulled, iz, -2), axis=0) + 2
    end_y = tl.max(tl.where(pulled, iy, -2), axis=0) + 2
    end_x = tl.max(tl.where(pulled, ix, -2), axis=0) + 2
    for node_z in range(first_z, end_z):
        sz = tl.where(iz == node_z, 1 - fz, tl.where(iz + 1 == node_z, fz, 0.0))
        for node_y in range(first_y, end_y):
            sy = sz * tl.where(iy == node_y, 1 - fy, tl.where(iy + 1 == node_y, fy, 0.0))
            for node_x in range(first_x, end_x):
                s = sy * tl.where(ix == node_x, 1 - fx, tl.where(ix + 1 == node_x, fx, 0.0))
                # A turned brick leaves corners of the range empty.
                if tl.max(s * stiffness, axis=0) > 0:
                    node = nodes + ((node_z * ny + node_y) * nx + node_x) * 9 + component
                    added = tl.sum(s[None, :] * terms, axis=1).to(tl.float64)
                    tl.atomic_add(node, tl.floor(added * unit + 0.5).to(tl.int64), mask=wanted, sem="relaxed")
    if AFFINE:
        # The affine moves x in x + u(x): the prediction changes by q (id + Du) dx.
        azz, ayz, axz = _slopes(around_z, wz, wy, wx)
        azy, ayy, axy = _slopes(around_y, wz, wy, wx)
        azx, ayx, axx = _slopes(around_x, wz, wy, wx)
        per_z = 1 / tl.load(parameters + SPACING).to(tl.float32)
        per_y = 1 / tl.load(parameters + SPACING + 1).to(tl.float32)
        per_x = 1 / tl.load(parameters + SPACING + 2).to(tl.float32)
        rz = qz + tl.where(free_z, (qz * azz + qy * azy + qx * azx) * per_z, 0.0)
        ry = qy + tl.where(free_y, (qz * ayz + qy * ayy + qx * ayx) * per_y, 0.0)
        rx = qx + tl.where(free_x, (qz * axz + qy * axy + qx * axx) * per_x, 0.0)
        vz, vy, vx = z.to(tl.float32), y.to(tl.float32), x.to(tl.float32)
        products = _stacked(row, 0, vz * vz, tl.zeros((16, BZ * BY * BX), tl.float32))
        products = _stacked(row, 1, vz * vy, products)
        products = _stacked(row, 2, vz * vx, products)
        products = _stacked(row, 3, vz, products)
        products = _stacked(row, 4, vy * vy, products)
        products = _stacked(row, 5, vy * vx, products)
        products = _stacked(row, 6, vy, products)
        products = _stacked(row, 7, vx * vx, products)
        products = _stacked(row, 8, vx, products)
        products = tl.where(row == 9, 1.0, products)
        out = affine_sums + brick * 9 * INDEX_PRODUCTS + component
        tl.store(out, tl.sum((force * rz)[None, :] * products, axis=1))
        tl.store(out + INDEX_PRODUCTS, tl.sum((force * ry)[None, :] * products, axis=1))
        tl.store(out + 2 * INDEX_PRODUCTS, tl.sum((force * rx)[None, :] * products, axis=1))
        tl.store(out + 3 * INDEX_PRODUCTS, tl.sum((stiffness * rz * rz)[None, :] * products, axis=1))
        tl.store(out + 4 * INDEX_PRODUCTS, tl.sum((stiffness * rz * ry)[None, :] * products, axis=1))
        tl.store(out + 5 * INDEX_PRODUCTS, tl.sum((stiffness * rz * rx)[None, :] * products, axis=1))
        tl.store(out + 6 * INDEX_PRODUCTS, tl.sum((stiffness * ry * ry)[None, :] * products, axis=1))
        tl.store(out + 7 * INDEX_PRODUCTS, tl.sum((stiffness * ry * rx)[None, :] * products, axis=1))
        tl.store(out + 8 * INDEX_PRODUCTS, tl.sum((stiffness * rx * rx)[None, :] * products, axis=1))


@triton.jit(do_not_specialize=["weight", "count"])
def curve(zz, zy, zx, yy, yx, xx, velocity, momentum, out, weight, count, BLOCK: tl.constexpr):
    """The symmetric matrix at each node times the velocity there, and a multiple of the momentum."""
    node = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = node < count
    vz = tl.load(velocity + node * 3, mask=live, other=0.0)
    vy = tl.load(velocity + node * 3 + 1, mask=live, other=0.0)
    vx = tl.load(velocity + node * 3 + 2, mask=live, other=0.0)
    hzy = tl.load(zy + node, mask=live, other=0.0)
    hzx = tl.load(zx + node, mask=live, other=0.0)
    hyx = tl.load(yx + node, mask=live, other=0.0)
    z = tl.load(zz + node, mask=live, other=0.0) * vz + hzy * vy + hzx * vx
    y = hzy * vz + tl.load(yy + node, mask=live, other=0.0) * vy + hyx * vx
    x = hzx * vz + hyx * vy + tl.load(xx + node, mask=live, other=0.0) * vx
    tl.store(out + node * 3, z + weight * tl.load(momentum + node * 3, mask=live, other=0.0), mask=live)
    tl.store(out + node * 3 + 1, y + weight * tl.load(momentum + node * 3 + 1, mask=live, other=0.0), mask=live)
    tl.store(out + node * 3 + 2, x + weight * tl.load(momentum + node * 3 + 2, mask=live, other=0.0), mask=live)


@triton.jit
def _reached(u, nz, ny, nx, hz, hy, hx, BLOCK: tl.constexpr):
    """The nodes of this program, and the cells where the displacement takes them."""
    node = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = node < nz * ny * nx
    z, y, x = node // (ny * nx), node // nx % ny, node % nx
    uz = tl.load(u + node * 3, mask=live, other=0.0) / hz
    uy = tl.load(u + node * 3 + 1, mask=live, other=0.0) / hy
    ux = tl.load(u + node * 3 + 2, mask=live, other=0.0) / hx
    iz, fz, free_z = _cell(z.to(tl.float64) + uz, nz)
    iy, fy, free_y = _cell(y.to(tl.float64) + uy, ny)
    ix, fx, free_x = _cell(x.to(tl.float64) + ux, nx)
    return node, live, iz, iy, ix, fz, fy, fx, free_z, free_y, free_x


@triton.jit(do_not_specialize=_NODE_SIZES)
def gather(u, field, out, nz, ny, nx, hz, hy, hx, BLOCK: tl.constexpr):
    """field(x + u)."""
    node, live, iz, iy, ix, fz, fy, fx, free_z, free_y, free_x = _reached(u, nz, ny, nx, hz, hy, hx, BLOCK)
    at, wz, wy, wx = _corners(iz, iy, ix, fz, fy, fx, ny, nx)
    share = wz * wy * wx
    for k in tl.static_range(3):
        value = tl.sum(share * _component(field + k, at, 3, live), axis=0)
        tl.store(out + node * 3 + k, value, mask=live)


@triton.jit(do_not_specialize=_NODE_SIZES)
def scatter(u, force, unit, out, nz, ny, nx, hz, hy, hx, BLOCK: tl.constexpr):
    """Transpose of `gather`, in fixed point."""
    node, live, iz, iy, ix, fz, fy, fx, free_z, free_y, free_x = _reached(u, nz, ny, nx, hz, hy, hx, BLOCK)
    scale = tl.load(unit)
    at, wz, wy, wx = _corners(iz, iy, ix, fz, fy, fx, ny, nx)
    share = wz * wy * wx
    for k in tl.static_range(3):
        f = tl.load(force + node * 3 + k, mask=live, other=0.0).to(tl.float64) * scale
        part = tl.floor(share * f[None, :] + 0.5).to(tl.int64)
        tl.atomic_add(out + at * 3 + k, part, mask=live[None, :], sem="relaxed")


@triton.jit(do_not_specialize=_NODE_SIZES)
def push(u, field, change, field_change, out, nz, ny, nx, hz, hy, hx, BLOCK: tl.constexpr):
    """Derivative of u + field(x + u): change + field_change(x + u) + Dfield(x + u) change."""
    node, live, iz, iy, ix, fz, fy, fx, free_z, free_y, free_x = _reached(u, nz, ny, nx, hz, hy, hx, BLOCK)
    cz = tl.where(free_z, tl.load(change + node * 3, mask=live, other=0.0) / hz, 0.0)
    cy = tl.where(free_y, tl.load(change + node * 3 + 1, mask=live, other=0.0) / hy, 0.0)
    cx = tl.where(free_x, tl.load(change + node * 3 + 2, mask=live, other=0.0) / hx, 0.0)
    at, wz, wy, wx = _corners(iz, iy, ix, fz, fy, fx, ny, nx)
    share = wz * wy * wx
    for k in tl.static_range(3):
        dz, dy, dx = _slopes(_component(field + k, at, 3, live), wz, wy, wx)
        own = tl.load(change + node * 3 + k, mask=live, other=0.0)
        moved = tl.sum(share * _component(field_change + k, at, 3, live), axis=0)
        tl.store(out + node * 3 + k, own + moved + dz * cz + dy * cy + dx * cx, mask=live)


@triton.jit(do_not_specialize=_NODE_SIZES)
def pull(u, field, force, out, nz, ny, nx, hz, hy, hx, BLOCK: tl.constexpr):
    """The part of the transpose of `push` that stays at its node, the force on u; `scatter` is the other."""
    node, live, iz, iy, ix, fz, fy, fx, free_z, free_y, free_x = _reached(u, nz, ny, nx, hz, hy, hx, BLOCK)
    sz = fz * 0
    sy = fz * 0
    sx = fz * 0
    at, wz, wy, wx = _corners(iz, iy, ix, fz, fy, fx, ny, nx)
    for k in tl.static_range(3):
        dz, dy, dx = _slopes(_component(field + k, at, 3, live), wz, wy, wx)
        f = tl.load(force + node * 3 + k, mask=live, other=0.0)
        sz += dz * f
        sy += dy * f
        sx += dx * f
    own = force + node * 3
    tl.store(out + node * 3, tl.load(own, mask=live, other=0.0) + tl.where(free_z, sz / hz, 0.0), mask=live)
    tl.store(out + node * 3 + 1, tl.load(own + 1, mask=live, other=0.0) + tl.where(free_y, sy / hy, 0.0), mask=live)
    tl.store(out + node * 3 + 2, tl.load(own + 2, mask=live, other=0.0) + tl.where(free_x, sx / hx, 0.0), mask=live)


@triton.jit(do_not_specialize=_NODE_SIZES)
def smallest_determinant(u, out, nz, ny, nx, hz, hy, hx, BLOCK: tl.constexpr):
    """The smallest Jacobian determinant at the corners of this program's cells."""
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = cell < (nz - 1) * (ny - 1) * (nx - 1)
    z, y, x = cell // ((ny - 1) * (nx - 1)), cell // (nx - 1) % (ny - 1), cell % (nx - 1)
    smallest = tl.full((BLOCK,), float("inf"), tl.float32)
    for corner in tl.static_range(8):
        oz, oy, ox = z + corner // 4, y + (corner // 2) % 2, x + corner % 2
        along_z = u + ((z * ny + oy) * nx + ox) * 3
        along_y = u + ((oz * ny + y) * nx + ox) * 3
        along_x = u + ((oz * ny + oy) * nx + x) * 3
        a = 1 + _difference(along_z, ny * nx * 3, live) / hz
        b = _difference(along_y, nx * 3, live) / hy
        c = _difference(along_x, 3, live) / hx
        d = _difference(along_z + 1, ny * nx * 3, live) / hz
        e = 1 + _difference(along_y + 1, nx * 3, live) / hy
        f = _difference(along_x + 1, 3, live) / hx
        g = _difference(along_z + 2, ny * nx * 3, live) / hz
        h = _difference(along_y + 2, nx * 3, live) / hy
        i = 1 + _difference(along_x + 2, 3, live) / hx
        determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
        smallest = tl.minimum(smallest, tl.where(live, determinant, float("inf")))
    tl.store(out + tl.program_id(0), tl.min(smallest, axis=0))


@triton.jit
def _difference(at, stride, live):
    return tl.load(at + stride, mask=live, other=0.0) - tl.load(at, mask=live, other=0.0)
