import standins
import torch

from cad.prior.depth import DepthEstimator
from cad.seeding import generator

CPU = torch.device("cpu")


class Ramp(torch.nn.Module):
    """Predicts, where DPT predicts inverse depth, the mean colour: what comes of it can be computed by hand."""

    def forward(self, pixel_values):
        return type("Output", (), {"predicted_depth": pixel_values.mean(1)})


def test_depth_is_one_where_nearest_and_zero_where_farthest_in_each_picture(published_refiners):
    estimator = DepthEstimator.load(published_refiners.depth, CPU)
    images = torch.randn(3, 3, 16, 16, generator=generator("depth")).clamp(-1, 1)
    found = estimator.estimate(images, 24)
    assert found.shape == (3, 3, 24, 24)
    assert torch.equal(found[:, 0], found[:, 2])
    torch.testing.assert_close(found.amin((1, 2, 3)), torch.zeros(3))
    torch.testing.assert_close(found.amax((1, 2, 3)), torch.ones(3))
    torch.testing.assert_close(estimator.estimate(images[1:2], 24), found[1:2], atol=1e-4, rtol=0)


def test_the_processor_feeds_the_network_as_published(published_refiners):
    """[-1, 1] is what DPT's mean and deviation of 0.5 make of grey levels, at the network's side of 32 px."""
    estimator = DepthEstimator.load(published_refiners.depth, CPU)
    seen = []
    estimator.network.register_forward_pre_hook(lambda module, args, given: seen.append(args), with_kwargs=True)
    estimator.estimate(torch.full((1, 3, 16, 16), 0.25), 16)
    torch.testing.assert_close(seen[0][0], torch.full((1, 3, 32, 32), 0.25))


def test_brighter_is_nearer_and_a_flat_picture_has_no_depth():
    estimator = DepthEstimator(Ramp(), standins.DPTImageProcessor(size={"height": 8, "width": 8}))
    ramp = torch.linspace(-0.5, 0.7, 8).expand(1, 3, 8, 8)
    torch.testing.assert_close(estimator.estimate(ramp, 8)[0, 0, 3], torch.linspace(0, 1, 8), atol=1e-6, rtol=0)
    assert torch.equal(estimator.estimate(torch.zeros(1, 3, 8, 8), 8), torch.zeros(1, 3, 8, 8))
