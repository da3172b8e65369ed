import math

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from cad.prior import ddim
from cad.seeding import generator


def make_scheduler(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction_type,
    )  # fmt: skip


def alpha_bar() -> torch.Tensor:
    """Cumulative products of 1 - beta of Stable Diffusion's scaled-linear schedule, float64."""
    betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


def ddim_step(x, output, t, previous, eta, noise, prediction_type):
    """One DDIM step, written out from Song et al., Eq. 12 and 16."""
    a, b = alpha_bar()[t], alpha_bar()[max(previous, 0)]
    if prediction_type == "epsilon":
        epsilon, x0 = output, (x - (1 - a).sqrt() * output) / a.sqrt()
    else:
        x0, epsilon = a.sqrt() * x - (1 - a).sqrt() * output, a.sqrt() * output + (1 - a).sqrt() * x
    sigma = eta * ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
    return b.sqrt() * x0 + (1 - b - sigma**2).sqrt() * epsilon + sigma * noise


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_walk_is_the_written_out_recursion(prediction_type, eta):
    scheduler = make_scheduler(prediction_type)
    random = generator("ddim")
    start = torch.randn(2, 4, 3, 3, generator=random, dtype=torch.float64)
    noises = torch.randn(5, 2, 4, 3, 3, generator=random, dtype=torch.float64)

    def denoise(x, t):
        return torch.sin(3 * x) * (0.5 + t / 1000)

    times = ddim.time_steps(scheduler, 5, 1.0)
    assert times == [801, 601, 401, 201, 1]
    found = ddim.walk(denoise, scheduler, start, times, eta, (lambda k: noises[k]) if eta else None)
    x = start
    for k, t in enumerate(times):
        x = ddim_step(x, denoise(x, t), t, t - 200, eta, noises[k], prediction_type)
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)  # diffusers holds the schedule in float32


def test_eta_without_noise_is_refused():
    with pytest.raises(ValueError, match="step_noise"):
        ddim.walk(lambda x, t: x, make_scheduler("epsilon"), torch.zeros(1, 4, 2, 2), [1], 1.0, None)


def test_guidance_by_hand():
    found = ddim.guide(torch.tensor([3.0, -1.0]), torch.tensor([1.0, 1.0]), 3.0)
    assert found.tolist() == [7.0, -5.0]


@given(steps=st.integers(1, 60), strength=st.floats(0, 1))
def test_strength_keeps_the_end_of_the_walk(steps, strength):
    scheduler = make_scheduler("epsilon")
    whole, part = ddim.time_steps(scheduler, steps, 1.0), ddim.time_steps(scheduler, steps, strength)
    assert len(whole) == steps
    assert abs(len(part) - steps * strength) <= 0.5
    assert part == whole[steps - len(part) :]


def test_strength_is_rounded_not_truncated():
    assert len(ddim.time_steps(make_scheduler("epsilon"), 100, 0.29)) == 29


def test_target_of_v_prediction_by_hand():
    latents, noise = torch.tensor([[[[2.0]]]]), torch.tensor([[[[3.0]]]])
    times = torch.tensor([400])
    a = alpha_bar()[400]
    expected = float(a.sqrt() * 3 - (1 - a).sqrt() * 2)
    assert ddim.target(make_scheduler("v_prediction"), latents, noise, times).item() == pytest.approx(
        expected, abs=1e-5
    )
    assert ddim.target(make_scheduler("epsilon"), latents, noise, times) is noise
    noisy = ddim.add_noise(make_scheduler("epsilon"), latents, noise, times)
    assert noisy.item() == pytest.approx(float(a.sqrt() * 2 + (1 - a).sqrt() * 3), abs=1e-5)


def test_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match="sample"):
        ddim.target(make_scheduler("sample"), torch.zeros(1), torch.zeros(1), torch.zeros(1))


def test_noise_of_an_image_depends_on_no_batch():
    def streams(names):
        return ddim.NoiseStreams([generator(0, "o", "prior", *n) for n in names], torch.device("cpu"), torch.float32)

    pair, alone = streams([(0, 0), (3, 1)]), streams([(3, 1)])
    for _ in range(3):
        assert torch.equal(pair.draw((4, 2, 2))[1], alone.draw((4, 2, 2))[0])
