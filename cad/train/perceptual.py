"""LPIPS with the AlexNet trunk, loaded from a local file: the distance of Eq. 10."""

import warnings
from pathlib import Path

import lpips
import torch
from torch import Tensor, nn

from cad.artifacts.tensors import faults_named, open_tensors
from cad.errors import UserError

# torchvision's index of each convolution in `alexnet().features` -> lpips' name of the same layer and its shape.
TRUNK = {
    0: ("slice1.0", (64, 3, 11, 11)),
    3: ("slice2.3", (192, 64, 5, 5)),
    6: ("slice3.6", (384, 192, 3, 3)),
    8: ("slice4.8", (256, 384, 3, 3)),
    10: ("slice5.10", (256, 256, 3, 3)),
}
SMALLEST_SIDE = 31  # px: below this the trunk's second pooling leaves nothing


def load_lpips(weights: Path, device: torch.device) -> nn.Module:
    """LPIPS 0.1 (AlexNet), frozen, in evaluation mode; maps two [B, 3, H, W] in [-1, 1] to distances [B, 1, 1, 1].

    weights: safetensors file with torchvision's names (`features.0.weight` ...) in any float type. Raises UserError
    when it is missing or is no AlexNet trunk. The linear heads come with the `lpips` package; nothing is downloaded.
    """
    trunk = read_trunk(weights)
    # The constructor draws a random trunk, which is replaced at once: keep those draws off the global generator.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision deprecates the argument through which lpips asks for no download
        metric = lpips.LPIPS(net="alex", pretrained=True, pnet_rand=True, verbose=False)
    metric.net.load_state_dict(trunk)
    return metric.requires_grad_(False).eval().to(device)


def read_trunk(weights: Path) -> dict[str, Tensor]:
    """The trunk's tensors, float32, under lpips' names; raises UserError naming the file and the fault."""
    remedy = "run `dvc pull data.dvc`, which brings data/weights/lpips, or correct models.lpips"
    if not weights.is_file():
        raise UserError(f"{weights}: the LPIPS trunk is missing; {remedy}")
    found: dict[str, Tensor] = {}
    with faults_named(weights):
        stored = open_tensors(weights, "pt")
        names = set(stored.keys())
        for index, (name, shape) in TRUNK.items():
            for part, wanted in (("weight", shape), ("bias", shape[:1])):
                key = f"features.{index}.{part}"
                if key not in names or tuple(stored.get_slice(key).get_shape()) != wanted:
                    raise UserError(f"{weights}: no AlexNet trunk ({key} is not there as {wanted}); {remedy}")
                found[f"{name}.{part}"] = stored.get_tensor(key).float()
    return found
