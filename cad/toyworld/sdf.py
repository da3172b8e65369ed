"""Sphere tracing of unions of signed-distance primitives, compiled by numba.

A scene is a float64 array [P, WIDTH], one primitive a row, laid out by the column constants below. Every function here
works on that array, so that nothing of Python is left in the inner loop.
"""

import math

import numpy as np
from numba import njit

ELLIPSOID, BOX, CYLINDER, CONE, TORUS, ROOF = range(6)
PLAIN, STRIPES, DOTS = range(3)

# Columns of a primitive: shape, centre, rotation (world to local, row by row), size, rounding, colours, pattern.
SHAPE, CENTER, ROTATION, SIZE, ROUNDING, COLOR, SECOND, PATTERN, FREQUENCY = 0, 1, 4, 13, 16, 17, 20, 23, 24
WIDTH = 25

MAX_STEPS = 64
HIT = 1e-3  # a surface is hit below this distance, in scene units
SAFETY = 0.9  # the ellipsoid's and the roof's distances are bounds only near the surface
SUN = np.array([-0.45, -0.40, 0.80]) / math.sqrt(0.45**2 + 0.40**2 + 0.80**2)
AMBIENT = 0.58


@njit(cache=True, inline="always")
def _cone(radial: float, z: float, bottom: float, top: float, half: float) -> float:
    """Distance to a capped cone about the z axis, as the nearer of its caps and its slanted side."""
    reach = radial - min(radial, bottom if z < 0 else top)
    cap = abs(z) - half
    slope_r, slope_z = top - bottom, 2 * half
    along = ((top - radial) * slope_r + (half - z) * slope_z) / (slope_r * slope_r + slope_z * slope_z)
    along = min(max(along, 0.0), 1.0)
    side_r = radial - top + slope_r * along
    side_z = z - half + slope_z * along
    sign = -1.0 if side_r < 0 and cap < 0 else 1.0
    return sign * math.sqrt(min(reach * reach + cap * cap, side_r * side_r + side_z * side_z))


@njit(cache=True, inline="always")
def _local_distance(row: np.ndarray, x: float, y: float, z: float) -> float:
    """Signed distance of a local point to the primitive of this row."""
    shape, a, b, c = int(row[SHAPE]), row[SIZE], row[SIZE + 1], row[SIZE + 2]
    if shape == ELLIPSOID:
        scaled = math.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
        slope = math.sqrt((x / (a * a)) ** 2 + (y / (b * b)) ** 2 + (z / (c * c)) ** 2)
        return scaled * (scaled - 1) / max(slope, 1e-9) if slope > 1e-9 else -min(a, b, c)
    if shape == BOX:
        r = row[ROUNDING]
        qx, qy, qz = abs(x) - a + r, abs(y) - b + r, abs(z) - c + r
        outside = math.sqrt(max(qx, 0.0) ** 2 + max(qy, 0.0) ** 2 + max(qz, 0.0) ** 2)
        return outside + min(max(qx, qy, qz), 0.0) - r
    radial = math.sqrt(x * x + y * y)
    if shape == CYLINDER:
        r = row[ROUNDING]
        dr, dz = radial - a + r, abs(z) - b + r
        return math.sqrt(max(dr, 0.0) ** 2 + max(dz, 0.0) ** 2) + min(max(dr, dz), 0.0) - r
    if shape == CONE:
        return _cone(radial, z, a, b, c)
    if shape == TORUS:
        return math.sqrt((radial - a) ** 2 + z * z) - b
    # ROOF: a triangular prism; a = half length along x, b = half width along y, c = height, base at z = 0
    slant = (abs(y) * c + (z - c) * b) / math.sqrt(b * b + c * c)
    return max(abs(x) - a, slant, -z)


@njit(cache=True, inline="always")
def _to_local(row: np.ndarray, x: float, y: float, z: float) -> tuple[float, float, float]:
    dx, dy, dz = x - row[CENTER], y - row[CENTER + 1], z - row[CENTER + 2]
    r = ROTATION
    return (
        row[r] * dx + row[r + 1] * dy + row[r + 2] * dz,
        row[r + 3] * dx + row[r + 4] * dy + row[r + 5] * dz,
        row[r + 6] * dx + row[r + 7] * dy + row[r + 8] * dz,
    )


@njit(cache=True)
def nearest(scene: np.ndarray, x: float, y: float, z: float) -> tuple[float, int]:
    """Signed distance of a world point to the scene and the index of its nearest primitive."""
    best, part = 1e9, -1
    for i in range(scene.shape[0]):
        lx, ly, lz = _to_local(scene[i], x, y, z)
        distance = _local_distance(scene[i], lx, ly, lz)
        if distance < best:
            best, part = distance, i
    return best, part


@njit(cache=True)
def _color(row: np.ndarray, x: float, y: float, z: float, out: np.ndarray) -> None:
    """Surface colour of a primitive at a world point, pattern applied, before shading."""
    lx, ly, lz = _to_local(row, x, y, z)
    pattern, frequency = int(row[PATTERN]), row[FREQUENCY]
    second = False
    if pattern == STRIPES:
        second = math.sin(frequency * lz) > 0.25
    elif pattern == DOTS:
        second = math.sin(frequency * lx) * math.sin(frequency * ly + 1.0) * math.sin(frequency * lz + 0.5) > 0.22
    start = SECOND if second else COLOR
    for k in range(3):
        out[k] = row[start + k]


@njit(cache=True)
def _trace(
    scene: np.ndarray,
    ox: float,
    oy: float,
    oz: float,
    dx: float,
    dy: float,
    dz: float,
    bound: float,
    out: np.ndarray,
) -> tuple[float, int]:
    """Follow one ray: shaded colour into `out`; returns (distance, part) or (inf, -1) where it meets nothing."""
    along = ox * dx + oy * dy + oz * dz
    inside = along * along - (ox * ox + oy * oy + oz * oz) + bound * bound
    if inside <= 0:
        return np.inf, -1
    reach = math.sqrt(inside)
    t, end = -along - reach, -along + reach
    for _ in range(MAX_STEPS):
        x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
        distance, part = nearest(scene, x, y, z)
        if distance < HIT:
            e = 1e-3
            nx = nearest(scene, x + e, y, z)[0] - nearest(scene, x - e, y, z)[0]
            ny = nearest(scene, x, y + e, z)[0] - nearest(scene, x, y - e, z)[0]
            nz = nearest(scene, x, y, z + e)[0] - nearest(scene, x, y, z - e)[0]
            norm = math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-12
            lambert = max((nx * SUN[0] + ny * SUN[1] + nz * SUN[2]) / norm, 0.0)
            _color(scene[part], x, y, z, out)
            for k in range(3):
                out[k] *= AMBIENT + (1 - AMBIENT) * lambert
            return t, part
        t += SAFETY * distance
        if t > end:
            return np.inf, -1
    return np.inf, -1


@njit(cache=True)
def render(
    scene: np.ndarray, camera: np.ndarray, focal: float, resolution: int, bound: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One view of a scene, antialiased where neighbouring pixels meet different parts or colours.

    camera: [4, 4] camera-to-world (OpenCV axes); focal in image sides; bound: radius of a sphere about the origin that
    holds the scene. Returns colour [H, W, 3] in [0, 1] on white, coverage [H, W] in [0, 1], and the distance along the
    ray [H, W] at the pixel's centre (inf where it meets nothing).
    """
    n = resolution
    color = np.ones((n, n, 3))
    coverage = np.zeros((n, n))
    depth = np.full((n, n), np.inf)
    parts = np.full((n, n), -1)
    shade = np.empty(3)
    ox, oy, oz = camera[0, 3], camera[1, 3], camera[2, 3]
    for i in range(n):
        for j in range(n):
            dx, dy, dz = _direction(camera, focal, (j + 0.5) / n, (i + 0.5) / n)
            depth[i, j], parts[i, j] = _trace(scene, ox, oy, oz, dx, dy, dz, bound, shade)
            if parts[i, j] >= 0:
                color[i, j] = shade
                coverage[i, j] = 1.0
    first = color.copy()
    for i in range(n):
        for j in range(n):
            if not _edge(parts, first, i, j):
                continue
            total = np.zeros(3)
            hits = 0
            for k in range(4):
                u, v = (j + 0.25 + 0.5 * (k % 2)) / n, (i + 0.25 + 0.5 * (k // 2)) / n
                dx, dy, dz = _direction(camera, focal, u, v)
                _, part = _trace(scene, ox, oy, oz, dx, dy, dz, bound, shade)
                if part >= 0:
                    total += shade
                    hits += 1
                else:
                    total += 1.0
            color[i, j] = total / 4
            coverage[i, j] = hits / 4
    return color, coverage, depth


@njit(cache=True, inline="always")
def _direction(camera: np.ndarray, focal: float, u: float, v: float) -> tuple[float, float, float]:
    x, y = (u - 0.5) / focal, (v - 0.5) / focal
    norm = math.sqrt(x * x + y * y + 1)
    return (
        (camera[0, 0] * x + camera[0, 1] * y + camera[0, 2]) / norm,
        (camera[1, 0] * x + camera[1, 1] * y + camera[1, 2]) / norm,
        (camera[2, 0] * x + camera[2, 1] * y + camera[2, 2]) / norm,
    )


@njit(cache=True)
def _edge(parts: np.ndarray, color: np.ndarray, i: int, j: int) -> bool:
    """Whether a pixel's right, lower, left or upper neighbour shows another part or a clearly different colour."""
    n = parts.shape[0]
    for k in range(4):
        y, x = i + (k == 1) - (k == 3), j + (k == 0) - (k == 2)
        if 0 <= y < n and 0 <= x < n:
            if parts[y, x] != parts[i, j]:
                return True
            if np.abs(color[y, x] - color[i, j]).sum() > 0.15:
                return True
    return False
