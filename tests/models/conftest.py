from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def draws():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def generator_settings():
    return SimpleNamespace(
        z_dim=8,
        w_dim=12,
        mapping_layers=2,
        mapping_lr_multiplier=0.01,
        plane_resolution=8,
        plane_channels=4,
        channel_base=64,
        channel_max=16,
        decoder_hidden=8,
        feature_channels=6,
        raw_resolution=8,
        output_resolution=16,
        coarse_samples=4,
        fine_samples=4,
        upsampler_channels=8,
        activation_clamp=None,
    )


@pytest.fixture
def discriminator_settings():
    return SimpleNamespace(channel_base=64, channel_max=16, mbstd_group=2, pose_noise=0.0, activation_clamp=None)
