import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import skimage.data
import torch
from PIL import Image

from cad.errors import UserError
from cad.train.lpips_weights import ArrayUnpickler, convert_trunk, write_trunk
from cad.train.perceptual import TRUNK, load_lpips

WEIGHTS = Path(__file__).parents[2] / "data/weights/lpips/alexnet.safetensors"


@pytest.fixture(scope="module")
def metric():
    return load_lpips(WEIGHTS, torch.device("cpu"))


@pytest.fixture(scope="module")
def astronaut():
    picture = np.array(Image.fromarray(skimage.data.astronaut()).resize((256, 256), Image.Resampling.BICUBIC))
    return torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1


def test_the_known_distance_of_a_photograph_to_its_shift(metric, astronaut):
    # FACTS section 6: 0.088 for the astronaut at 256 px against itself moved by 2 px along both axes.
    assert metric(astronaut, astronaut.roll((2, 2), (2, 3))).item() == pytest.approx(0.088, abs=0.001)


def test_it_behaves_like_a_distance(metric, astronaut):
    assert metric(astronaut, astronaut).item() == 0
    near, far = (metric(astronaut, astronaut + s * torch.ones(1)).item() for s in (0.05, 0.5))
    noise = metric(astronaut, torch.rand(1, 3, 256, 256) * 2 - 1).item()
    assert 0 < near < far < noise


def test_the_smallest_patch_of_a_profile_has_a_gradient(metric):
    patch = torch.zeros(2, 3, 32, 32, requires_grad=True)
    metric(patch, torch.ones(2, 3, 32, 32)).sum().backward()
    assert patch.grad.abs().sum() > 0
    assert all(not p.requires_grad for p in metric.parameters())


def test_loading_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    load_lpips(WEIGHTS, torch.device("cpu"))
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_file_is_small_and_has_its_licence_beside_it():
    assert WEIGHTS.stat().st_size <= 5_000_000
    assert "BSD" in WEIGHTS.with_name("LICENSE.txt").read_text()


def test_missing_weights_are_one_line_with_a_remedy(tmp_path):
    with pytest.raises(UserError, match=r"gone\.safetensors: the LPIPS trunk is missing; run `dvc pull"):
        load_lpips(tmp_path / "gone.safetensors", torch.device("cpu"))


def test_other_weights_are_refused(tmp_path):
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"features.0.weight": torch.zeros(1)}, other)
    with pytest.raises(UserError, match=r"other\.safetensors: no AlexNet trunk"):
        load_lpips(other, torch.device("cpu"))
    other.write_bytes(WEIGHTS.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"other\.safetensors: "):
        load_lpips(other, torch.device("cpu"))


def test_conversion_transposes_kernels():
    kernels = {position: shape for position, (_, shape) in enumerate(TRUNK.values())}
    arrays = {
        f"Conv_{k}": {"kernel": np.zeros((h, w, i, o), np.float32), "bias": np.zeros(o, np.float32)}
        for k, (o, i, h, w) in kernels.items()
    }
    arrays["Conv_0"]["kernel"][1, 2, 0, 5] = 7  # row 1, column 2, from channel 0 to channel 5
    trunk = convert_trunk(arrays)
    assert trunk["features.0.weight"][5, 0, 1, 2] == 7
    assert {name for name in trunk if "weight" in name} == {f"features.{i}.weight" for i in (0, 3, 6, 8, 10)}


def test_the_unpickler_builds_arrays_and_nothing_else():
    for protocol in (3, 4):
        loaded = ArrayUnpickler(io.BytesIO(pickle.dumps({"a": np.arange(3.0)}, protocol=protocol))).load()
        assert loaded["a"].tolist() == [0, 1, 2]

    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    with pytest.raises(pickle.UnpicklingError, match="not allowed"):
        ArrayUnpickler(io.BytesIO(pickle.dumps(Evil()))).load()


def test_an_archive_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.tar\.gz: cannot read"):
        write_trunk(tmp_path / "none.tar.gz", tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()
