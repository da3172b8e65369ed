"""The refined prior in memory, and the batches of real images and of camera poses drawn from it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cad.artifacts import PriorCache
from cad.camera import focal_length, pose_label
from cad.config import CameraSettings
from cad.errors import UserError
from cad.seeding import drawn_integers


@dataclass(frozen=True)
class Reals:
    """Every refined sample of the kept poses.

    images: uint8 [M, N, 3, H, W]; cameras: [M, 4, 4] camera-to-world; labels: [M, 25] absolute poses as D sees them;
    polar: mean polar angle of the kept poses, radians (for previews).
    """

    images: Tensor
    cameras: Tensor
    labels: Tensor
    polar: float

    def __len__(self) -> int:
        """The number of kept poses."""
        return len(self.cameras)


def load_reals(folder: Path, camera: CameraSettings, resolution: int) -> Reals:
    """Read the refine cache into memory; raises UserError when it is broken, empty or of another resolution."""
    cache = PriorCache.open(folder)
    if cache.resolution != resolution:
        raise UserError(
            f"{folder}: its images are {cache.resolution} px but generator.output_resolution is {resolution}; "
            "make them equal in the profile"
        )
    if len(cache) == 0:
        raise UserError(f"{folder}: no pose was kept; loosen prune.max_bad_pixels or prune.min_clip_similarity")
    images = torch.from_numpy(cache.load()).permute(0, 1, 4, 2, 3).contiguous()
    cameras = cache.poses.cameras(camera.radius)
    labels = pose_label(cameras, focal_length(camera.fov_deg))
    return Reals(images=images, cameras=cameras, labels=labels, polar=float(cache.poses.polar.mean()))


def draw_reals(reals: Reals, batch: int, draws: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """Real images [B, 3, H, W] in [-1, 1] and their labels [B, 25]: uniform over kept poses, then over their draws."""
    pose = drawn_integers(len(reals), batch, generator=draws)
    sample = drawn_integers(reals.images.shape[1], batch, generator=draws)
    images = reals.images[pose, sample].to(device)
    return images.float() / 127.5 - 1, reals.labels[pose].to(device)


def draw_cameras(reals: Reals, batch: int, draws: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cameras [B, 4, 4] for fakes and their labels [B, 25], uniform over the *kept* poses.

    After pruning these are not uniform on the sphere; a uniform sphere would let D win on the pose alone (FACTS 2).
    """
    pose = drawn_integers(len(reals), batch, generator=draws)
    return reals.cameras[pose].to(device), reals.labels[pose].to(device)


def crop_places(count: int, side: int, resolution: int, draws: torch.Generator) -> Tensor:
    """Top-left corners (column, row) of square crops, uniform over all places of the image, int64 [count, 2].

    [ours]: the object fills most of the frame, so nothing is gained by aiming at it.
    """
    return drawn_integers(resolution - side + 1, count, 2, generator=draws)
