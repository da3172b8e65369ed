"""Adam under lazy regularisation: how it is made, stepped and stored."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cad.errors import UserError
from cad.train import parallel


def lazy_adam(modules: dict[str, nn.Module], lr: float, beta1: float, beta2: float, interval: int) -> torch.optim.Adam:
    """Adam for named modules whose regulariser takes a step of its own every `interval` iterations.

    There are then k + 1 steps in k iterations, so the learning rate is multiplied by k / (k + 1) and both betas are
    raised to that power; the regulariser itself is multiplied by k where it is computed (FACTS section 3).
    """
    ratio = interval / (interval + 1)
    named = [(f"{prefix}.{name}", p) for prefix, module in modules.items() for name, p in module.named_parameters()]
    betas = (beta1**ratio, beta2**ratio)
    return torch.optim.Adam(named, lr=lr * ratio, betas=betas, eps=1e-8, fused=True)


def optimizer_tensors(optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """The optimiser's state as named tensors, `<parameter>/<exp_avg|exp_avg_sq|step>`."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{name}/{key}"] = value
    return tensors


def restore_optimizer(optimizer: torch.optim.Adam, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; parameters without an entry have not been stepped yet."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}/{key}" in tensors]
            optimizer.state[parameter] = {key: tensors[f"{name}/{key}"].clone().to(parameter.device) for key in keys}
            if not keys:
                del optimizer.state[parameter]


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Euclidean norm of all gradients together; not finite when any of them is not."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).item() if gradients else 0.0


def descend(loss: Tensor, optimizers: dict[str, torch.optim.Adam], stage: str, name: str, step: int) -> float:
    """One step of every optimiser down `loss`; returns the norm of all their gradients, and computes no others.

    In a team (`cad.train.parallel`) down the mean of its processes' losses.

    Raises UserError before any weight changes when the loss or a gradient is not finite: divergence is never hidden
    by replacing such values.
    """
    shared = parallel.mean(loss)
    if not torch.isfinite(shared):
        raise _diverged(stage, f"loss `{name}`", float(shared.detach()), step)
    for optimizer in optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    parameters = [p for optimizer in optimizers.values() for group in optimizer.param_groups for p in group["params"]]
    loss.backward(inputs=parameters)
    parallel.mean_gradients(parameters)
    norm = gradient_norm(parameters)
    if not math.isfinite(norm):
        raise _diverged(stage, f"gradient of loss `{name}`", norm, step)
    for optimizer in optimizers.values():
        optimizer.step()
    return norm


def _diverged(stage: str, what: str, value: float, step: int) -> UserError:
    return UserError(
        f"{stage}: the {what} is {value} at step {step}; training diverged: lower {stage}.lr_discriminator and "
        f"{stage}.lr_generator, or raise {stage}.r1_gamma, and run the stage again"
    )
