import pytest
import torch

from cad.models.resample import downsample, enlarge_to, gaussian_blur


def test_blur_by_hand_and_white_borders():
    images = torch.ones(1, 1, 15, 15)
    images[0, 0, 7, 7] = 0.0
    out = 1 - gaussian_blur(images, 1.0)[0, 0]
    offsets = torch.arange(-30, 31).double()
    kernel = torch.exp(-0.5 * offsets.square())
    kernel = (kernel / kernel.sum())[23:38].float()
    torch.testing.assert_close(out, kernel[:, None] * kernel[None])
    torch.testing.assert_close(gaussian_blur(torch.ones(2, 6, 8, 8), 3.0), torch.ones(2, 6, 8, 8))


def test_no_blur_is_the_identity_and_a_tiny_one_nearly():
    images = torch.randn(1, 3, 8, 8)
    assert gaussian_blur(images, 0) is images
    torch.testing.assert_close(gaussian_blur(images, 0.05), images)


def test_downsampling_does_not_alias():
    stripes = torch.tensor([-1.0, 1.0]).repeat(32).expand(1, 3, 64, 64)
    small = downsample(stripes, 16)
    assert small.shape == (1, 3, 16, 16)
    assert small[..., 1:-1].abs().max() < 0.2
    assert downsample(small, 16) is small


def test_enlarging_is_bilinear():
    row = enlarge_to(torch.tensor([0.0, 4.0]).expand(1, 1, 2, 2), 4)[0, 0, 0]
    assert row.tolist() == pytest.approx([0, 1, 3, 4])
