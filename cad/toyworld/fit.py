"""The loop that every small model is trained by: AdamW, warm-up and cool-down, EMA, checkpoints that resume."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cad.toyworld.settings import FitSettings

CHECKPOINT_SECONDS = 120
MOMENTS = ("exp_avg", "exp_avg_sq")


def learning_rate(step: int, settings: FitSettings) -> float:
    """Linear warm-up, a plateau, and a linear fall to zero over the last `cooldown` of the steps."""
    rise = min(1.0, (step + 1) / settings.warmup)
    fall = (settings.steps - step) / max(settings.cooldown * settings.steps, 1)
    return settings.lr * min(rise, fall, 1.0)


def fit(
    model: nn.Module, loss: Callable[[int], Tensor], settings: FitSettings, work: Path, report: Callable[[str], None]
) -> None:
    """Minimise `loss(step)` over the model's trainable parameters; leaves their moving average in the model.

    `work` holds the state; a call with a larger number of steps goes on from there. Batches must be a function of the
    step alone. Raises FloatingPointError where the loss or its gradient is no longer finite, before a weight changes.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.lr, weight_decay=0.01)
    average = {name: p.detach().clone() for name, p in parameters.items()}
    start = _restore(work, parameters, average, optimizer)
    began = saved = time.monotonic()
    recent: list[float] = []
    for step in range(start, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            value = loss(step)
        _check(work, "loss", value, step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        _check(work, "gradient", nn.utils.clip_grad_norm_(parameters.values(), 1.0), step)
        optimizer.step()
        _average(average, parameters, min(settings.ema, (1 + step) / (10 + step)))
        recent.append(value.item())
        now = time.monotonic()
        if len(recent) == 100:
            rate = (now - began) / (step + 1 - start)
            left = (settings.steps - step - 1) * rate / 60
            done = f"{work.name} {step + 1}/{settings.steps} loss {sum(recent) / 100:.4f}"
            report(f"{done} {rate:.3f} s/step {left:.0f} min left")
            recent.clear()
        if now - saved > CHECKPOINT_SECONDS or step + 1 == settings.steps:
            _save(work, step + 1, parameters, average, optimizer)
            saved = now
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(average[name])


def _check(work: Path, what: str, value: Tensor, step: int) -> None:
    if not torch.isfinite(value):
        raise FloatingPointError(f"{work.name}: the {what} is {value.item()} at step {step}; lower the learning rate")


@torch.no_grad()
def _average(average: dict[str, Tensor], parameters: dict[str, nn.Parameter], decay: float) -> None:
    torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - decay)


def _save(
    work: Path, step: int, parameters: dict[str, nn.Parameter], average: dict[str, Tensor], optimizer: torch.optim.AdamW
) -> None:
    tensors = {f"parameter.{name}": p.detach() for name, p in parameters.items()}
    tensors |= {f"average.{name}": value for name, value in average.items()}
    for name, parameter in parameters.items():
        tensors |= {f"{moment}.{name}": optimizer.state[parameter][moment] for moment in MOMENTS}
    work.mkdir(parents=True, exist_ok=True)
    partial = work / "state.partial"
    # The step is in the same file, so that the replacement of both is one.
    save_file({k: v.contiguous() for k, v in tensors.items()}, partial, metadata={"step": str(step)})
    partial.replace(work / "state.safetensors")


def saved_step(work: Path) -> int:
    """Steps done in this work folder, 0 where there is none."""
    path = work / "state.safetensors"
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return int(header["__metadata__"]["step"])


def _restore(
    work: Path, parameters: dict[str, nn.Parameter], average: dict[str, Tensor], optimizer: torch.optim.AdamW
) -> int:
    step = saved_step(work)
    if step == 0:
        return 0
    tensors = load_file(work / "state.safetensors")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameter.{name}"])
            average[name].copy_(tensors[f"average.{name}"])
            moments = {moment: tensors[f"{moment}.{name}"].clone() for moment in MOMENTS}
            optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
    return step


def load_average(work: Path, model: nn.Module) -> None:
    """Put the moving average of a training, finished or not, into the model."""
    tensors = load_file(work / "state.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors[f"average.{name}"])
