from types import SimpleNamespace

import pytest
import torch

from cad.camera import focal_length, pose_label, sphere_poses
from cad.models.discriminator import Discriminator, PatchDiscriminator, minibatch_std, noisy_label, smooth
from cad.models.layers import initialise


def made(settings, draws, batch=4):
    model = Discriminator(settings, 16)
    initialise(model, draws)
    image, raw = torch.randn(batch, 3, 16, 16, generator=draws), torch.randn(batch, 3, 8, 8, generator=draws)
    label = pose_label(sphere_poses(batch, draws).cameras(2.0), focal_length(49.1))
    return model, image, raw, label


def test_every_input_and_every_parameter_counts(discriminator_settings, draws):
    model, image, raw, label = made(discriminator_settings, draws)
    logits = model(image, raw, label)
    assert logits.shape == (4, 1)
    for changed in ((image * 0.9, raw, label), (image, raw * 0.9, label), (image, raw, label.roll(1, 0))):
        assert not torch.allclose(model(*changed), logits)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_raw_image_that_was_resized_before_gives_the_same(discriminator_settings, draws):
    model, image, raw, label = made(discriminator_settings, draws)
    big = torch.nn.functional.interpolate(raw, size=16, mode="bilinear")
    assert torch.equal(model(image, raw, label), model(image, big, label))


def test_r1_has_a_finite_second_derivative_everywhere(discriminator_settings, draws):
    model, image, raw, label = made(discriminator_settings, draws)
    image.requires_grad_(), raw.requires_grad_()
    gradients = torch.autograd.grad(model(image, raw, label).sum(), (image, raw), create_graph=True)
    assert all(g.abs().sum() > 0 for g in gradients)
    sum(g.square().sum() for g in gradients).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name
    weights = [p.grad.abs().sum() for n, p in model.named_parameters() if n.endswith("weight")]
    assert all(w > 0 for w in weights)


def test_second_derivatives_are_right_in_double_precision(draws):
    model = PatchDiscriminator(8, 16, 4, None).double()
    initialise(model, draws)
    patch = torch.randn(2, 3, 8, 8, generator=draws, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: model(x), patch)


def test_identical_samples_survive_the_second_derivative(discriminator_settings, draws):
    """The standard deviation of equal samples is 0, where a bare square root has an infinite slope."""
    model, image, raw, label = made(discriminator_settings, draws)
    image = image[:1].repeat(4, 1, 1, 1).requires_grad_()
    raw, label = raw[:1].repeat(4, 1, 1, 1), label[:1].repeat(4, 1)
    (gradient,) = torch.autograd.grad(model(image, raw, label).sum(), image, create_graph=True)
    gradient.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_minibatch_std_groups_are_strided():
    x = torch.zeros(4, 1, 2, 2)
    x[2] = 2.0  # groups of 2: samples (0, 2) and (1, 3)
    out = minibatch_std(x, 2)
    assert out.shape == (4, 2, 2, 2)
    assert out[:, 1, 0, 0].tolist() == pytest.approx([1.0, 1e-4, 1.0, 1e-4])
    assert torch.equal(out[:, :1], x)
    assert minibatch_std(x[:1], 4)[0, 1, 0, 0].item() == pytest.approx(1e-4)
    with pytest.raises(ValueError, match="batch of 6"):
        minibatch_std(torch.zeros(6, 1, 2, 2), 4)


@pytest.mark.parametrize("batch", [2, 4])
def test_batches_are_judged_together_as_they_are_alone(discriminator_settings, draws, batch):
    """Minibatch statistics are of one batch, be it smaller than a group or not."""
    settings = SimpleNamespace(**{**vars(discriminator_settings), "mbstd_group": 4})
    one, other = (made(settings, draws, batch) for _ in range(2))
    model = one[0]
    alone = [model(*given[1:]) for given in (one, other)]
    together = model(*(torch.cat(pair) for pair in zip(one[1:], other[1:], strict=True)), 2).chunk(2)
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(b, a)
    mixed = model(*(torch.cat(pair) for pair in zip(one[1:], other[1:], strict=True)))
    assert not torch.allclose(mixed, torch.cat(alone), rtol=1e-4)


def test_smoothing_is_1_2_1(draws):
    row = smooth(torch.tensor([0.0, 0, 4, 0, 0]).expand(1, 1, 5, 5))[0, 0, 2]
    assert row.tolist() == [0, 1, 2, 1, 0]
    corner = smooth(torch.full((1, 1, 3, 3), 16.0))[0, 0]  # zeros beyond the border
    assert corner.tolist() == [[9, 12, 9], [12, 16, 12], [9, 12, 9]]
    x = torch.randn(2, 2, 3, 4, generator=draws, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(smooth, x)
    assert torch.autograd.gradgradcheck(smooth, x)


def test_channels_follow_resolution_and_the_cap(draws):
    model = Discriminator(SimpleNamespace(channel_base=64, channel_max=9, mbstd_group=2, activation_clamp=None), 32)
    widths = [model.trunk.entry.weight.shape[0]] + [b.second.weight.shape[0] for b in model.trunk.blocks]
    assert widths == [2, 4, 8, 9]


def test_patches_are_judged_without_pose(draws):
    model = PatchDiscriminator(32, 256, 16, None)
    initialise(model, draws)
    patches = torch.randn(3, 3, 32, 32, generator=draws)
    logits = model(patches)
    assert logits.shape == (3, 1)
    torch.testing.assert_close(model(patches[1:2]), logits[1:2])  # no statistics over the batch


def test_label_noise_leaves_the_original_and_the_intrinsics(draws):
    label = pose_label(sphere_poses(5, draws).cameras(2.0), focal_length(49.1))
    kept = label.clone()
    noisy = noisy_label(label, 0.1, draws)
    assert torch.equal(label, kept)
    assert torch.equal(noisy[:, 12:], label[:, 12:])
    assert 0.05 < (noisy - label)[:, :12].std() < 0.15
    assert torch.equal(noisy_label(label, 0.0, draws), label)
