import pytest
import torch

from cad.models.ada import AdaController
from cad.seeding import generator
from cad.train.adversary import blur_sigma, shown


def test_the_blur_fades_linearly():
    assert blur_sigma(10.0, 2.0, 0) == 10
    assert blur_sigma(10.0, 2.0, 500) == pytest.approx(7.5)
    assert blur_sigma(10.0, 2.0, 2000) == 0
    assert blur_sigma(10.0, 2.0, 9000) == 0
    assert blur_sigma(10.0, 0.0, 0) == 0


def test_without_blur_and_augmentation_images_pass_unchanged():
    image, raw = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    seen = shown(image, raw, 0.0, 0.0, generator("a"))
    assert torch.equal(seen[0], image)
    assert torch.equal(seen[1], raw)


def test_both_images_share_blur_and_augmentation():
    image = torch.rand(4, 3, 16, 16) * 2 - 1
    seen = shown(image, image.clone(), 1.5, 1.0, generator("b"))
    torch.testing.assert_close(seen[0], seen[1])
    assert not torch.allclose(seen[0], image, atol=0.05)


def test_white_stays_white_under_blur_and_a_raw_image_is_raised():
    white = torch.ones(1, 3, 16, 16)
    seen = shown(white, white[..., :8, :8], 4.0, 0.0, generator("c"))
    assert seen[1].shape == (1, 3, 16, 16)
    torch.testing.assert_close(seen[0], white)
    torch.testing.assert_close(seen[1], white)


def test_p_follows_the_signs_of_the_discriminator():
    # 4 images per step, adjusted every 2 steps, 0 to 1 in 20 images: each adjustment is 4 * 2 / 20 = 0.4.
    ada = AdaController(target=0.6, interval=2, kimg=0.02, batch=4)
    sure, wavering = [1, 1, 1, 1], [1, 1, 1, -1]
    steps = [sure, wavering, sure, sure, sure, sure, wavering, wavering]
    means = []
    for signs in steps:
        ada.observe(torch.tensor(signs, dtype=torch.float32)[:, None])
        means.append(ada.p)
    # r_t over two steps: 0.75 > 0.6 up; 1 up; 1 up (clamped at 1); 0.5 < 0.6 down.
    assert means == pytest.approx([0, 0.4, 0.4, 0.8, 0.8, 1.0, 1.0, 0.6])
