from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from cad.artifacts import PriorCache, PriorCacheWriter
from cad.camera import sphere_poses
from cad.evaluate.diversity import draw_diversity, mean_pairwise, seed_diversity
from cad.seeding import generator
from cad.train.perceptual import load_lpips

CPU = torch.device("cpu")


class Mean(torch.nn.Module):
    """Absolute difference of the mean values, so that every result can be computed by hand."""

    def forward(self, a, b):
        assert a.shape == b.shape
        assert a.shape[1] == 3
        return (a - b).mean((1, 2, 3), keepdim=True).abs()


def flat(values):
    """Images of one grey level each: values [..., ] -> uint8 [..., 4, 4, 3]."""
    return np.broadcast_to(np.asarray(values, dtype=np.uint8)[..., None, None, None], (*np.shape(values), 4, 4, 3))


def cache(folder, values):
    images = np.ascontiguousarray(flat(values))
    poses, draws = images.shape[:2]
    writer = PriorCacheWriter(folder, sphere_poses(poses, generator("poses")), list(range(poses)), draws, 4, poses)
    writer.write_shard(0, images)
    writer.finish()
    return PriorCache.open(folder)


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_pairs_of_seeds_at_equal_frames_by_hand(batch):
    # frames 0 and 2 of three seeds; grey 255 is +1, grey 0 is -1, so 51 levels are 0.4
    images = flat([[0, 255, 0], [51, 0, 0], [102, 9, 51]])
    at_0, at_2 = (0.4 + 0.8 + 0.4) / 3, (0 + 0.4 + 0.4) / 3
    assert seed_diversity(Mean(), images, 2, batch, CPU) == pytest.approx((at_0 + at_2) / 2)


def test_equal_seeds_are_at_zero_whatever_they_show():
    turning = np.broadcast_to(flat([[10, 200, 90]]), (3, 3, 4, 4, 3))
    assert seed_diversity(Mean(), turning, 1, 8, CPU) == 0


def test_one_seed_has_no_diversity():
    assert seed_diversity(Mean(), flat([[1, 2, 3]]), 1, 8, CPU) is None


def test_draws_are_compared_at_an_even_choice_of_poses(tmp_path):
    refined = cache(tmp_path, [[0, 51], [0, 255], [0, 102], [0, 255]])  # poses 0 and 2 are chosen of four
    assert draw_diversity(Mean(), refined, 2, 8, CPU) == pytest.approx((0.4 + 0.8) / 2)
    everything = (0.4 + 2 + 0.8 + 2) / 4
    assert draw_diversity(Mean(), refined, 99, 8, CPU) == pytest.approx(everything)


def test_one_draw_has_no_diversity(tmp_path):
    assert draw_diversity(Mean(), cache(tmp_path, [[0], [255]]), 2, 8, CPU) is None


def test_the_distance_is_lpips_on_its_own_scale(models):
    metric = load_lpips(Path(models.lpips), CPU)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    one_by_one = [metric(tensors[[i]], tensors[[j]]).item() for i, j in combinations(range(3), 2)]
    assert mean_pairwise(metric, [images], 2, CPU) == pytest.approx(np.mean(one_by_one), rel=1e-5)
