"""Whose time it is in a training step: forward where a part is called, backward from the moment its output's gradient
is there.

Nothing in the trainings knows of this: the parts are wrapped from outside, for as long as a measurement lasts. Autograd
goes through a step's nodes from the last to the first, so a part's backward pass lasts from its output's gradient to
the gradient of what came before it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from cad.models.discriminator import Discriminator, PatchDiscriminator
from cad.models.generator import Generator
from cad.models.mapping import Mapping
from cad.models.upsampler2d import Upsampler2d
from cad.train import distill, optimize, stage2, synthesis

REST = "rest"


class Clock:
    """Adds up the time between switches by the part that it belongs to; on a GPU by its own events.

    now: the time on a CPU, `time.perf_counter`, or `time.process_time` where others work on the machine too.
    """

    def __init__(self, device: torch.device, now: Callable[[], float]) -> None:
        self.cuda, self.now = device.type == "cuda", now
        self.marks: list[tuple[str, Any]] = []
        self.stack = [REST]
        self.whole = False  # within a part whose own parts don't count

    def start(self) -> None:
        """Begin anew; what runs now is the rest."""
        if self.cuda:
            torch.cuda.synchronize()
        self.marks, self.stack = [], [REST]
        self.switch(REST)

    def switch(self, part: str) -> None:
        """From now on it is this part's time."""
        if not self.cuda:
            self.marks.append((part, self.now()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append((part, event))

    def stop(self) -> dict[str, float]:
        """Seconds of every part since `start`."""
        self.switch(REST)
        if self.cuda:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for (part, begun), (_, ended) in zip(self.marks, self.marks[1:], strict=False):
            seconds = begun.elapsed_time(ended) / 1000 if self.cuda else ended - begun
            found[part] = found.get(part, 0.0) + seconds
        return found

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """It is this part's time within, then again that of the part around it."""
        self.stack.append(part)
        self.switch(part)
        try:
            yield
        finally:
            self.stack.pop()
            self.switch(self.stack[-1])

    def part(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call` as a part of a step: its own time, and its backward pass's."""

        def timed(*arguments: Any, **options: Any) -> Any:
            if self.whole:
                return call(*arguments, **options)
            with self.within(name):
                result = call(*arguments, **options)
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda gradient: self.switch(name))
            return result

        return timed

    def regulariser(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call` as a step of its own, backward pass and optimiser included, whatever parts it calls."""

        def timed(*arguments: Any, **options: Any) -> Any:
            self.whole = True
            try:
                with self.within(name):
                    return call(*arguments, **options)
            finally:
                self.whole = False

        return timed


@contextmanager
def watched(clock: Clock) -> Iterator[None]:
    """Let the clock follow the steps of both trainings within."""
    called = nn.Module.__call__  # from outside, so that compiled networks are timed as they run
    parts: list[tuple[Any, str, str]] = [
        (synthesis, "render_view", "rendering"),
        (synthesis, "render_patch", "rendering"),
        (Generator, "planes", "synthesis"),
        (stage2, "lifted_planes", "synthesis"),
        (distill, "shown", "augmentation"),
        (stage2, "consistency_loss", "LPIPS"),
        (optimize, "gradient_norm", "optimiser"),
        (torch.optim.Adam, "step", "optimiser"),
    ]
    regularisers = [
        (distill.Distiller, "penalty_step", "R1"),
        (distill.Distiller, "density_step", "density"),
        (stage2.Branch3D, "penalty_step", "patch R1"),
    ]
    networks = {
        Mapping: "synthesis",
        Upsampler2d: "synthesis",
        Discriminator: "discriminator",
        PatchDiscriminator: "discriminator",
    }
    with ExitStack() as stack:
        for owner, name, part in parts:
            stack.enter_context(patch.object(owner, name, clock.part(part, getattr(owner, name))))
        for owner, name, part in regularisers:
            stack.enter_context(patch.object(owner, name, clock.regulariser(part, getattr(owner, name))))
        for network, part in networks.items():
            stack.enter_context(patch.object(network, "__call__", clock.part(part, called)))
        yield
