import math

import numpy as np
import pandas
import pytest
import torch

from cad.artifacts import PriorCache
from cad.camera import Poses, angle_between, sphere_poses
from cad.config import ToyworldSettings
from cad.prior.truth import (
    BANK,
    MAX_ANGLE_DEG,
    features,
    intersection_over_union,
    measure_truth,
    nearest,
    spiral_poses,
    summarize_truth,
)
from cad.seeding import generator
from cad.toyworld.world import instance, render_views

ROBOT = ToyworldSettings(family="robot", seed=900001)


def test_bank_is_dense_enough_to_name_a_wrong_pose():
    anywhere = sphere_poses(500, generator("truth"))
    gap = angle_between(anywhere, spiral_poses(BANK)).min(1).values.rad2deg().max()
    assert gap < MAX_ANGLE_DEG * 0.6


def test_iou_by_hand():
    a, b = np.zeros((2, 4, 4), bool), np.zeros((4, 4), bool)
    a[0, :2], b[1:3] = True, True
    assert intersection_over_union(a, b).tolist() == [4 / 12, 0.0]
    assert intersection_over_union(np.zeros((1, 2, 2), bool), np.zeros((2, 2), bool)).tolist() == [1.0]


def test_nearest_is_the_smallest_distance():
    random = np.random.default_rng(0)
    samples, targets, bank = random.random((5, 3, 7)), random.random((5, 7)), random.random((9, 7))
    views = np.concatenate([targets[:, None], np.broadcast_to(bank, (5, 9, 7))], 1)
    distance = np.linalg.norm(samples[:, :, None] - views[:, None], axis=-1)
    assert (nearest(samples, targets, bank) == distance.argmin(2)).all()


def test_a_view_that_looks_like_the_target_counts_as_the_target():
    """To the bit: what is compared are whole numbers, so equal views are equally far from every sample."""
    random = np.random.default_rng(1)
    images, shapes = random.integers(0, 256, (6, 32, 32, 3), np.uint8), random.random((6, 32, 32)) < 0.5
    views = features(images, shapes)
    samples = features(random.integers(0, 256, (6, 4, 32, 32, 3), np.uint8), random.random((6, 4, 32, 32)) < 0.5)
    samples[:, 0] = views
    bank = np.concatenate([views, views[::-1]])
    found = nearest(samples, views, bank)
    assert (found[:, 0] == 0).all()
    assert (found <= len(views)).all()  # never the second of two equal ones


def test_true_views_are_good_and_turned_ones_are_not(make_cache, camera):
    azimuth = torch.linspace(0, 2 * math.pi, 9, dtype=torch.float64)[:8] + 0.1
    poses = Poses(azimuth=azimuth, polar=torch.full((8,), math.radians(75), dtype=torch.float64))
    turned = Poses(azimuth=azimuth + math.radians(90), polar=poses.polar)
    true, wrong = (render_views(instance("robot", 900001), p, camera, 32).images for p in (poses, turned))
    cache = PriorCache.open(make_cache(poses, np.stack([true, wrong], axis=1)))
    table = measure_truth(cache, ROBOT, camera, 250)
    first, second = table[table["sample"] == 0], table[table["sample"] == 1]
    assert (first["iou"] > 0.95).all()  # the foreground takes in half-covered pixels of the outline
    assert (first["angle_deg"] < 10).all()  # the target, or a true view of the bank right beside it
    assert not first["bad"].any()
    assert second["bad"].all()
    assert second["angle_deg"].median() == pytest.approx(85, abs=15)


def test_precision_and_recall_by_hand():
    truth = pandas.DataFrame(
        [
            {"pose": p, "sample": s, "iou": 0.5, "angle_deg": 1.0, "bad": bad}
            for p, bads in {10: (False, False), 11: (True, False), 12: (True, True), 13: (False, False)}.items()
            for s, bad in enumerate(bads)
        ]
    )
    decisions = pandas.DataFrame({"pose": [10, 11, 12, 13], "kept": [False, True, False, True], "chosen": [0, 1, 0, 1]})
    found = summarize_truth(truth, decisions)
    # Truly bad: 11 and 12. Rejected: 10 and 12. One hit of two, both ways.
    assert (found["precision"], found["recall"]) == (0.5, 0.5)
    assert (found["bad_poses"], found["bad_samples"]) == (2, 3)
    assert (found["bad_before"], found["bad_after"]) == (0.5, 0.0)
    everything = summarize_truth(truth, decisions.assign(kept=True))
    assert everything["precision"] is None
    assert everything["recall"] == 0.0
