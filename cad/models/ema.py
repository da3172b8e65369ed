"""The moving average of the generator's weights that views are made with ([ours]: StyleGAN2's, FACTS section 3)."""

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def ema_decay(images: int, batch: int, half_life_kimg: float, ramp_up: float) -> float:
    """Weight of the old average in one step of `batch` images, when `images` were shown before it.

    The half-life is `half_life_kimg` thousand images, but at most the share `ramp_up` of what was shown, so that the
    random start is soon forgotten; 0 in the first step.
    """
    half_life = min(half_life_kimg * 1000, images * ramp_up)
    return 0.5 ** (batch / half_life) if half_life > 0 else 0.0


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average = decay * average + (1 - decay) * model for every parameter; buffers are copied."""
    get_ema_multi_avg_fn(decay)(list(average.parameters()), list(model.parameters()), None)
    for kept, current in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(current)
