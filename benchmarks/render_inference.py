"""One frame of an orbit, from planes as they are and from a prepared volume: the inference part of
`benchmarks/render.py`.

The field holds one object, made and not trained: a ball of 0.6 half sides with a texture, of which the first plane
channel sums up to |p|^2 and the first hidden unit alone makes density.
"""

import argparse

import torch
from render_cases import FOV, FRAME, HALF_SIDE, ORBIT, RADIUS, SHAPES, Shape, alternately
from torch import Tensor
from torch.nn.functional import interpolate

from cad.camera import focal_length, near_far, orbit_poses, pixel_centers, rays
from cad.models.decoder import TriplaneDecoder
from cad.render.choice import use_renderer
from cad.render.image import render_view
from cad.render.inference import Volume, prepare
from cad.render.reference import Sampling, chord, strata

BALL = 0.6  # its radius in half sides
STEEP = 200.0  # what |p|^2 counts in the hidden unit: the surface is a fraction of a texel thick
POLAR = 1.2  # radians, of the orbit
FRAMES = {name: SHAPES[name] for name in (ORBIT, FRAME)}
HEADER = (
    "| frame | threads | plain [s] | prepared [s] | ratio | prepared [frames/s] | preparing [s] | marked samples "
    "| mean difference | largest |\n|" + "---|" * 10
)


def section(given: argparse.Namespace) -> list[str]:
    """Lines of the page: a row for each frame and number of threads, and the bar."""
    lines = ["### Inference", "", " ".join((__doc__ or "").split("\n\n")[1].split()), "", HEADER]
    differences = []
    for name, shape in FRAMES.items():
        for threads in given.threads if given.device == "cpu" else given.threads[-1:]:
            torch.set_num_threads(threads)
            cells, difference = frame(shape, given.repeats, given.device, given.clock)
            differences.append(difference)
            lines.append(f"| {name} | {threads} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    verdict = "reached" if max(differences) < 1 else "not reached"
    return [
        *lines,
        "",
        "Differences are of colours, in 1/255. Marked samples: the share of the coarse ones that lie in cells of the",
        "occupancy grid which may hold density; no others are evaluated.",
        "",
        f"- bar: the image changes by less than 1/255 on average; measured {max(differences):.3f}/255: {verdict}",
    ]


@torch.no_grad()
def frame(shape: Shape, repeats: int, device: str, clock: str) -> tuple[list[str], float]:
    """The cells behind a frame's name, and the mean difference of the two images' colours in 1/255."""
    planes, decoder = textured_ball(shape)
    planes, decoder = planes.to(device), decoder.to(device)
    camera = orbit_poses(1, POLAR, 0.4).cameras(RADIUS).to(device)
    sampling = Sampling(*near_far(RADIUS, HALF_SIDE), HALF_SIDE, shape.samples, shape.samples)

    def seen(field: Tensor | Volume) -> Tensor:
        return render_view(field, decoder, camera, focal_length(FOV), shape.side, sampling, None)[0]

    with use_renderer("fused"):
        volume = prepare(planes, decoder)
        plain, quick = seen(planes), seen(volume)
        calls = {
            "plain": lambda: seen(planes),
            "prepared": lambda: seen(volume),
            "preparing": lambda: prepare(planes, decoder),
        }
        took = alternately(calls, repeats, device, clock)
    change = (quick - plain)[:, :3].abs() * 255
    cells = [f"{took['plain']:.5f}", f"{took['prepared']:.5f}", f"{took['plain'] / took['prepared']:.1f} x"]
    cells += [f"{1 / took['prepared']:.1f}", f"{took['preparing']:.4f}"]
    cells.append(f"{100 * marked(volume, camera, shape, sampling):.0f} %")
    return [*cells, f"{change.mean():.3f}", f"{change.max():.2f}"], change.mean().item()


@torch.no_grad()
def textured_ball(shape: Shape) -> tuple[Tensor, TriplaneDecoder]:
    """Planes [1, 3, C, N, N] and their decoder."""
    draws, size = torch.Generator().manual_seed(0), shape.planes
    centres = (torch.arange(size) + 0.5) / size * 2 - 1
    coarse = torch.randn(3, shape.channels, max(2, size // 4), max(2, size // 4), generator=draws)
    planes = interpolate(coarse, (size, size), mode="bicubic", align_corners=True)
    planes[:, 0] = (centres[:, None] ** 2 + centres**2) / 2
    decoder = TriplaneDecoder(shape.channels, shape.hidden, shape.features)
    for parameter in decoder.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=draws))
    gains = [(layer.scaled()[0] / layer.weight)[0, 0] for layer in (decoder.hidden, decoder.out)]
    for layer in (decoder.hidden, decoder.out):
        layer.weight[0] = 0
    decoder.hidden.weight[0, 0] = -STEEP / gains[0]
    decoder.hidden.bias[0] = STEEP * BALL**2
    decoder.out.weight[0, 0] = 1 / gains[1]
    decoder.out.bias[0] = -8  # no density where the unit is silent
    return planes[None], decoder


def marked(volume: Volume, camera: Tensor, shape: Shape, sampling: Sampling) -> float:
    """The share of a view's coarse samples that lie in cells of the occupancy grid which may hold density."""
    packed, size = volume.packed, volume.planes.shape[-1]
    if packed is None:
        return 1.0
    origins, directions = rays(camera, focal_length(FOV), pixel_centers(shape.side))
    enter, leave = (x[..., None] for x in chord(origins, directions, sampling))
    distances = torch.lerp(enter, leave, strata(enter[..., 0], sampling.coarse, None).transpose(1, 2))
    points = (origins[..., None, :] + distances[..., None] * directions[..., None, :]) / sampling.half_side
    cell = ((points + 1) * size / 2 - 0.5).clamp(0, size - 1).long() >> packed.shift
    place = (cell[..., 2] * packed.side + cell[..., 1]) * packed.side + cell[..., 0]
    hit = (packed.bits[0].long()[place >> 5] >> (place & 31)) & 1
    inside = (leave > enter).expand(distances.shape)
    return (hit[inside].float().mean()).item() if inside.any() else 0.0
