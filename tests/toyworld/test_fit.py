"""The training loop: its schedule and average by hand, its resumption to the bit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cad.seeding import generator
from cad.toyworld import fit as loop
from cad.toyworld.fit import fit, learning_rate, load_average, saved_step
from cad.toyworld.settings import FitSettings

SETTINGS = FitSettings(steps=100, batch=1, lr=0.01, warmup=10, cooldown=0.4, ema=0.95, bf16=False)


def silent(text: str) -> None:
    pass


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.001),  # 1/10 of the warm-up
        (4, 0.005),
        (9, 0.01),
        (59, 0.01),  # the plateau lasts until step 60 = 100 - 0.4 * 100
        (60, 0.01),
        (70, 0.0075),  # 30 of 40 steps left
        (90, 0.0025),
        (99, 0.00025),
    ],
)
def test_learning_rate_by_hand(step: int, expected: float) -> None:
    assert learning_rate(step, SETTINGS) == pytest.approx(expected)


def test_no_cooldown_is_no_division_by_zero() -> None:
    flat = SETTINGS.model_copy(update={"cooldown": 0.0})
    assert learning_rate(99, flat) == pytest.approx(0.01)


class Line(nn.Module):
    """y = a x + b, with a parameter that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(3))
        self.b = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)

    def loss(self, step: int) -> Tensor:
        x = torch.randn(8, 3, generator=generator("line", step))
        return ((x @ self.a + self.b - x.sum(1) - 1) ** 2).mean()


def run(work: Path, steps: int, until: int | None = None) -> Line:
    """Train for `steps`; an exception after `until` steps stands for a kill."""
    model = Line()

    def loss(step: int) -> Tensor:
        if step == until:
            raise KeyboardInterrupt
        return model.loss(step)

    fit(model, loss, SETTINGS.model_copy(update={"steps": steps}), work, silent)
    return model


def test_it_learns(tmp_path: Path) -> None:
    model = run(tmp_path / "line", 100)
    assert model.loss(1000) < 0.5 * Line().loss(1000)
    assert model.frozen == 1


def test_a_killed_training_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole", 40)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)  # save at every step
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", 40, until=17)
    assert saved_step(tmp_path / "killed") == 17
    resumed = run(tmp_path / "killed", 40)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert (tmp_path / "whole/state.safetensors").read_bytes() == (tmp_path / "killed/state.safetensors").read_bytes()


def test_what_was_done_since_the_last_save_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "line", 40, until=5)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 1e9)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "line", 40, until=20)
    assert saved_step(tmp_path / "line") == 5
    whole, resumed = run(tmp_path / "whole", 40), run(tmp_path / "line", 40)
    assert torch.equal(whole.a, resumed.a)


def test_a_finished_training_only_loads(tmp_path: Path) -> None:
    first = run(tmp_path / "line", 30)
    again = run(tmp_path / "line", 30, until=0)  # a step would raise
    assert torch.equal(first.a, again.a)
    loaded = Line()
    load_average(tmp_path / "line", loaded)
    assert torch.equal(first.a, loaded.a)


def test_a_training_that_never_ran_is_at_step_0(tmp_path: Path) -> None:
    assert saved_step(tmp_path / "nothing") == 0


def test_the_average_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """a <- d a + (1 - d) p with d = min(ema, (1 + step) / (10 + step)), over the parameters after each step."""
    trace: list[Tensor] = []
    step = torch.optim.AdamW.step
    model = Line()

    def recorded(self: torch.optim.AdamW) -> None:
        step(self)
        trace.append(model.a.detach().clone())

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    fit(model, model.loss, SETTINGS.model_copy(update={"steps": 3}), tmp_path / "line", silent)
    average = torch.zeros(3)
    for parameter, decay in zip(trace, (1 / 10, 2 / 11, 3 / 12), strict=True):
        average = decay * average + (1 - decay) * parameter
    torch.testing.assert_close(model.a.detach(), average)


def test_the_average_is_bounded_by_the_setting(tmp_path: Path) -> None:
    """With ema 0 the average is the last parameter itself."""
    model = Line()
    fit(model, model.loss, SETTINGS.model_copy(update={"steps": 5, "ema": 0.0}), tmp_path / "line", silent)
    from safetensors.torch import load_file

    state = load_file(tmp_path / "line/state.safetensors")
    assert torch.equal(state["average.a"], state["parameter.a"])


def test_a_loss_that_is_not_finite_stops_and_is_not_saved(tmp_path: Path) -> None:
    model = Line()

    def loss(step: int) -> Tensor:
        return model.loss(step) * (float("nan") if step == 3 else 1.0)

    with pytest.raises(FloatingPointError, match="line: the loss is nan at step 3; lower the learning rate"):
        fit(model, loss, SETTINGS, tmp_path / "line", silent)
    assert not (tmp_path / "line/state.safetensors").exists()


def test_a_gradient_that_is_not_finite_stops_before_a_weight_changes(tmp_path: Path) -> None:
    """sqrt(0) is finite, its derivative is not."""
    model = Line()

    def loss(step: int) -> Tensor:
        return model.loss(step) if step < 3 else (model.b - model.b.detach()).sqrt()

    with pytest.raises(FloatingPointError, match=r"line: the gradient is (inf|nan) at step 3; lower the learning rate"):
        fit(model, loss, SETTINGS, tmp_path / "line", silent)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_progress_is_told_every_hundred_steps(tmp_path: Path) -> None:
    told: list[str] = []
    model = Line()
    fit(model, model.loss, SETTINGS.model_copy(update={"steps": 250}), tmp_path / "line", told.append)
    assert [text.split(" loss ")[0] for text in told] == ["line 100/250", "line 200/250"]
    assert all(text.endswith(" min left") for text in told)
