"""Cases for the fused renderer, and the places where its tests run: a CPU, a GPU, and a GPU's kernels run on a CPU."""

import ctypes
import functools
import os
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from cad.camera import near_far
from cad.models.decoder import TriplaneDecoder
from cad.render import build, call, cuda, fused, reference
from cad.render.choice import use_renderer

HERE = Path(__file__).parent
HALF_SIDE = 0.7
NEAR, FAR = near_far(2.0, HALF_SIDE)
SAMPLING = reference.Sampling(NEAR, FAR, HALF_SIDE, 8, 8)
# A place is the same for all examples of a test, hence the second check is not needed.
quick = settings(
    deadline=None,
    max_examples=10,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
shapes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 3),
        "count": st.sampled_from([1, 2, 15, 16, 17, 50]),
        "samples": st.sampled_from([1, 3, 4, 5, 16, 17, 37]),
        "channels": st.sampled_from([1, 8, 16, 32, 48]),
        "hidden": st.sampled_from([1, 7, 32, 64]),
        "features": st.sampled_from([1, 3, 6, 32]),
        "height": st.integers(1, 9),
        "width": st.integers(1, 9),
        "seed": st.integers(0, 2**31),
    }
)
SMALL = {
    "batch": 2, "count": 21, "samples": 6, "channels": 8, "hidden": 16, "features": 5,
    "height": 5, "width": 6, "seed": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where the renderer runs: "cpu", "cuda" or "emulated", and the device of its tensors."""

    name: str
    device: torch.device

    def fit(self, shape):
        """The shape, with no more channels and features than the emulated kernels are compiled for."""
        if self.name != "emulated":
            return shape
        return shape | {"channels": min(shape["channels"], 16), "features": min(shape["features"], 6)}


@functools.cache
def emulated_library(folder: Path, channels: int, features: int, planes: str) -> ctypes.CDLL:
    """The CUDA kernels compiled for the CPU, by the emulator beside this file."""
    compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    built = folder / f"emulated-{channels}-{features}-{planes}.so"
    flags = ["-std=c++17", "-O2", "-march=native", "-U_FORTIFY_SOURCE", "-fPIC", "-shared", "-Wno-unknown-pragmas"]
    flags += [f"-DCAD_CHANNELS={channels}", f"-DCAD_FEATURES={features}", f"-DCAD_PLANES={planes}", f"-I{HERE}"]
    sources = sorted(map(str, (build.SOURCES / "cuda").glob("*.cu")))
    subprocess.run([*compiler, *flags, "-x", "c++", *sources, "-o", str(built)], check=True)
    found = ctypes.CDLL(str(built))
    found.cad_fault.restype = ctypes.c_char_p
    found.cad_workspace.restype = ctypes.c_int64
    return found


@pytest.fixture
def emulate(tmp_path_factory, monkeypatch) -> Callable[[], None]:
    """Let the fused renderer run the GPU's kernels, on the CPU, from the call on."""
    folder = tmp_path_factory.getbasetemp()

    class Emulated(cuda.Launcher):
        def compiled(self, planes, channels, features):
            return emulated_library(folder, channels, features, cuda.PLANES[planes.dtype])

        def stream(self):
            return 0

    def start():
        monkeypatch.setattr(call, "launcher_for", Emulated)
        monkeypatch.setattr(fused, "_at_one_go", lambda *_: False)
        monkeypatch.setattr(call, "plane_dtypes", lambda device: cuda.PLANES)

    return start


def _placed(name, emulate) -> Place:
    if name == "emulated":
        emulate()
    if name == "cuda" and not cuda.available(torch.device("cuda")):
        pytest.skip("needs a GPU of compute capability 8.0 and nvcc")
    return Place(name, torch.device("cuda" if name == "cuda" else "cpu"))


CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=["cpu", "emulated", CUDA])
def place(request, emulate) -> Place:
    """Each place in turn."""
    return _placed(request.param, emulate)


@pytest.fixture(params=["emulated", CUDA])
def gpu(request, emulate) -> torch.device:
    """Where the tensors of the GPU's kernels lie."""
    return _placed(request.param, emulate).device


@pytest.fixture
def hardware() -> torch.device:
    """A GPU itself, for what no emulator shows."""
    return _placed("cuda", None).device


@pytest.fixture
def fused_without_gradients():
    """As views of prepared volumes are rendered."""
    with torch.no_grad(), use_renderer("fused"):
        yield


@pytest.fixture
def threads():
    """Sets the number of threads, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def decoder_of(channels, hidden, features, draws):
    decoder = TriplaneDecoder(channels, hidden, features)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
        decoder.out.bias[0] += 2  # rays end inside the box, so that what lies behind a sample matters
    return decoder


@torch.no_grad()
def random_field(size, channels, hidden, seed, batch=1, scale=1.0):
    """Planes without order and a decoder of both signs: dense here and empty there."""
    draws = torch.Generator().manual_seed(seed)
    decoder = decoder_of(channels, hidden, 5, draws)
    decoder.out.bias[0] -= 6
    return torch.randn(batch, 3, channels, size, size, generator=draws) * scale, decoder


@torch.no_grad()
def ball(size, radius):
    """A ball of this radius in half sides, coloured without order: |p|^2 is what the planes sum up to in channel 0."""
    draws = torch.Generator().manual_seed(0)
    centres = (torch.arange(size) + 0.5) / size * 2 - 1
    planes = torch.randn(1, 3, 4, size, size, generator=draws)
    planes[:, :, 0] = (centres[:, None] ** 2 + centres**2) / 2
    decoder = decoder_of(4, 8, 3, draws)
    gains = [(layer.scaled()[0] / layer.weight)[0, 0] for layer in (decoder.hidden, decoder.out)]
    # The first unit alone makes density: nearly linear within the ball, nearly 0 outside.
    decoder.hidden.weight[0] = torch.tensor([-200.0, 0, 0, 0]) / gains[0]
    decoder.hidden.bias[0] = 200 * radius**2
    decoder.out.weight[0] = torch.tensor([1.0] + [0.0] * 7) / gains[1]
    decoder.out.bias[0] = -8
    return planes, decoder


def by_layout(tensor, strided):
    """The same tensor; strided: its last axis is the outermost one in memory."""
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1) if strided else tensor


def case(batch, count, samples, channels, hidden, features, height, width, seed, device="cpu"):
    """Inputs of the op whose samples lie inside and outside the box: planes, rays, decoder."""
    draws = torch.Generator().manual_seed(seed)
    planes = torch.randn(batch, 3, channels, height, width, generator=draws)
    origins = torch.randn(batch, count, 3, generator=draws) * 0.3
    directions = torch.nn.functional.normalize(torch.randn(batch, count, 3, generator=draws), dim=-1)
    origins = origins - 2 * directions
    depths = (torch.rand(batch, count, samples, generator=draws) * 2.4 + 0.8).sort(-1).values
    leave = depths[..., -1] + torch.rand(batch, count, generator=draws) * 0.2
    decoder = decoder_of(channels, hidden, features, draws)
    return planes.to(device), [x.to(device) for x in (origins, directions, depths, leave)], decoder.to(device)


def by_reference(planes, given, decoder):
    """What the op computes, in the dtype of its inputs, from the parts of the reference."""
    origins, directions, depths, leave = given
    distances = depths.transpose(1, 2)
    points = origins[:, None] + distances[..., None] * directions[:, None]
    density, radiance = reference.field(planes, decoder, points.flatten(1, 2), HALF_SIDE)
    weights = reference.compositing_weights(density.reshape(distances.shape), distances, leave)
    features = (radiance.unflatten(2, distances.shape[1:]) * weights[:, None]).sum(2)
    passed = 1 - weights.sum(1)
    features = torch.cat([features[:, :3] + passed[:, None], features[:, 3:]], 1)
    depth = (weights * distances).sum(1) + passed * FAR
    return features.transpose(1, 2), 1 - passed, depth, weights.transpose(1, 2)


def assert_near(found, expected, tolerance):
    """Equal within `tolerance` of the largest expected value."""
    assert found.shape == expected.shape
    if expected.numel():
        limit = tolerance * max(expected.abs().max().item(), 1e-2)
        torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=limit)


def gradients(outputs, inputs, seed=5):
    draws = torch.Generator().manual_seed(seed)
    loss = sum((x * torch.randn(x.shape, generator=draws).to(x)).sum() for x in outputs)
    return torch.autograd.grad(loss, inputs)
