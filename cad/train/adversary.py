"""What the discriminator is shown: final and raw image together, blurred, then augmented (Sec. 3.2 and 4, FACTS 2)."""

import torch
from torch import Tensor

from cad.models.ada import augment
from cad.models.resample import enlarge_to, gaussian_blur


def blur_sigma(start: float, kimg: float, images: int) -> float:
    """Standard deviation of the blur in pixels: from `start` linearly to 0 over the first `kimg`; 0 kimg is none."""
    return start * max(1 - images / (kimg * 1000), 0.0) if kimg > 0 else 0.0


def shown(image: Tensor, raw: Tensor, sigma: float, p: float, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blur, then augment the pair that D compares: image [B, 3, H, W], raw [B, 3, r, r] -> both [B, 3, H, W].

    The raw image is resized up first, so that both are blurred alike and share one geometric and one colour draw. Real
    and fake take the same path (EG3D blurs only the real raw image, a defect).
    """
    six = gaussian_blur(torch.cat([image, enlarge_to(raw, image.shape[-1])], 1), sigma)
    six = augment(six, torch.tensor(p), draws)
    return six[:, :3], six[:, 3:]
