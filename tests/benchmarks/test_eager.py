"""The benchmark's plain PyTorch renders what cad/render/reference.py renders, and has its gradients."""

import eager
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cad.camera import focal_length, pixel_centers, rays, sphere_poses
from cad.render import reference
from tests.render.conftest import FAR, HALF_SIDE, NEAR, assert_near, decoder_of, quick

WAYS = {"texels": eager.texels, "images": eager.images}


def inputs(batch, side, channels, hidden, features, size, seed):
    """Planes, decoder and rays, some of which miss the box."""
    draws = torch.Generator().manual_seed(seed)
    planes = torch.randn(batch, 3, channels, size, size, generator=draws, dtype=torch.float64)
    decoder = decoder_of(channels, hidden, features, draws).double()
    cameras = sphere_poses(batch, draws).cameras(2.0).double()
    return planes, decoder, *rays(cameras, focal_length(70.0), pixel_centers(side).double())


def rendered(render, given, sampling, seed, grad):
    """Outputs, and gradients in planes and decoder."""
    planes, decoder, origins, directions = given
    planes = planes.clone().requires_grad_(grad)
    jitter = None if seed is None else torch.Generator().manual_seed(seed)
    with torch.set_grad_enabled(grad):
        outputs = render(planes, decoder, origins, directions, sampling, jitter)
    if not grad:
        return outputs, []
    draws = torch.Generator().manual_seed(7)
    loss = sum((x * torch.randn(x.shape, generator=draws, dtype=x.dtype)).sum() for x in outputs)
    return outputs, torch.autograd.grad(loss, [planes, *decoder.parameters()])


@pytest.mark.parametrize("way", WAYS)
@quick
@given(
    batch=st.integers(1, 3),
    side=st.sampled_from([1, 2, 5]),
    channels=st.sampled_from([1, 8, 17]),
    features=st.sampled_from([3, 5]),
    size=st.sampled_from([1, 2, 9]),
    coarse=st.sampled_from([1, 5, 16]),
    fine=st.sampled_from([0, 1, 7]),
    seed=st.sampled_from([None, 3]),
    points=st.sampled_from([1, 30, 10**6]),
)
def test_outputs_and_gradients_are_the_references(
    way, batch, side, channels, features, size, coarse, fine, seed, points
):
    sampling = reference.Sampling(NEAR, FAR, HALF_SIDE, coarse, fine)
    given = inputs(batch, side, channels, 8, features, size, 11)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eager, "POINTS_AT_ONCE", points)
        patch.setattr(eager, "COLUMNS_AT_ONCE", points)
        for grad in (False, True):
            found, expected = (
                rendered(render, given, sampling, seed, grad)
                for render in (eager.renderer(WAYS[way], compiled=False), reference.render_rays)
            )
            for x, y in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
                assert_near(x, y, 1e-9)
    if grad and size > 1:
        assert expected[1][0].abs().max() > 0


def test_planes_of_half_precision_are_rendered_to_their_precision():
    given = inputs(2, 5, 8, 16, 5, 9, 2)
    sampling = reference.Sampling(NEAR, FAR, HALF_SIDE, 8, 8)
    planes, decoder, origins, directions = given[0].bfloat16(), given[1].float(), given[2].float(), given[3].float()
    found, _ = rendered(
        eager.renderer(eager.texels, compiled=False), (planes, decoder, origins, directions), sampling, None, True
    )
    expected, _ = rendered(reference.render_rays, (planes.float(), decoder, origins, directions), sampling, None, False)
    assert (found.features - expected.features).abs().mean() < 0.02
    assert found.features.dtype == torch.float32
