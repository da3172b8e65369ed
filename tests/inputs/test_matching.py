import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cad.config import ElevationSettings
from cad.errors import UserError
from cad.inputs.matching import Matches, PatchMatcher, in_foreground, inside, load_matcher, read_weights

CPU = torch.device("cpu")
SETTINGS = ElevationSettings(
    matcher="patches", loftr=None, turn_deg=10.0, draws=1, white_threshold=240, patch_px=7, window=0.2,
    min_texture=0.01, min_correlation=0.8, max_return_px=1.0, join=0.004, outlier=0.03, min_tracks=30, max_error=0.01,
    min_contrast=0.05,
    score="points", ring_deg=[120.0, -120.0], hull_cells=32, max_uncovered=0.1, min_gap=0.02,
)  # fmt: skip
SIDE = 48
WAVES = np.random.default_rng(0).uniform(-0.6, 0.6, (12, 2))  # radians a pixel
PHASES = np.random.default_rng(1).uniform(0, 6.3, (12, 3))


def texture(x: float, y: float) -> np.ndarray:
    """A pattern that is known between the pixels too, moved by (x, y) pixels to the right and down."""
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(float)
    angles = (columns - x)[..., None] * WAVES[:, 0] + (rows - y)[..., None] * WAVES[:, 1]
    waves = np.sin(angles[..., None] + PHASES).sum(2)
    return np.clip(128 + 30 * waves, 0, 255).round().astype(np.uint8)


def everywhere(picture: np.ndarray) -> np.ndarray:
    return np.ones(picture.shape[:2], bool)


def test_a_mask_is_looked_up_by_row_y_and_column_x():
    """A mask that is not square and has one pixel."""
    mask = np.zeros((16, 20), bool)
    mask[2, 13] = True
    points = [[13.5 / 20, 2.5 / 16], [2.5 / 20, 13.5 / 16], [13.99 / 20, 2.01 / 16], [1.3, 0.1], [-0.1, 0.1]]
    assert inside(torch.tensor(points), mask).tolist() == [True, False, True, False, False]


def test_each_end_is_looked_up_in_its_own_mask():
    """One-2-3-45 takes one picture's y and the other's x, which would keep the second and third."""
    masks = np.zeros((2, 16, 20), bool)
    masks[0, 2, 13] = masks[1, 11, 4] = True
    own, other = [13.5 / 20, 2.5 / 16], [4.5 / 20, 11.5 / 16]
    mixed = [4.5 / 20, 2.5 / 16]
    ends = torch.tensor([own, mixed, other]), torch.tensor([other, other, own])
    matches = Matches(*ends, torch.tensor([0.1, 0.2, 0.3]))
    kept = in_foreground(matches, (masks[0], masks[1]))
    assert kept.confidence.tolist() == pytest.approx([0.1])


@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.0, -2.0), (2.4, -1.7)])
def test_patches_find_a_shift_below_the_pixel(shift):
    first, second = texture(0, 0), texture(*shift)
    matches = PatchMatcher(SETTINGS).match(first, second, (everywhere(first), everywhere(second)))
    moved = (matches.second - matches.first) * SIDE
    inner = ((matches.first - 0.5).abs() < 0.3).all(-1)  # away from the border, where patches are cut
    assert inner.sum() > 200
    assert (moved[inner] - torch.tensor(shift)).abs().median() < 0.1
    assert ((moved[inner] - torch.tensor(shift)).abs() < 0.5).all(-1).float().mean() > 0.95


def test_patches_stay_in_the_foreground_of_both():
    first, second = texture(0, 0), texture(4, 0)
    masks = everywhere(first), everywhere(second)
    masks[0][:, :20] = False
    masks[1][30:] = False
    matches = PatchMatcher(SETTINGS).match(first, second, masks)
    assert len(matches) > 50
    assert (matches.first[:, 0] * SIDE >= 20).all()
    assert (matches.second[:, 1] * SIDE < 30).all()


def test_patches_look_no_farther_than_the_window():
    first, second = texture(0, 0), texture(8, 0)
    near = PatchMatcher(SETTINGS.model_copy(update={"window": 4 / SIDE}))
    far = PatchMatcher(SETTINGS)
    masks = everywhere(first), everywhere(second)
    found = [matcher.match(first, second, masks) for matcher in (near, far)]
    assert ((found[0].second - found[0].first).abs() * SIDE <= 4.5 + 1e-4).all()
    assert len(found[0]) < len(found[1]) / 4


def test_a_flat_picture_has_no_matches():
    flat = np.full((SIDE, SIDE, 3), 90, np.uint8)
    assert len(PatchMatcher(SETTINGS).match(flat, flat, (everywhere(flat), everywhere(flat)))) == 0


def test_an_empty_foreground_has_no_matches():
    picture = texture(0, 0)
    nothing = np.zeros((SIDE, SIDE), bool)
    for masks in ((nothing, everywhere(picture)), (everywhere(picture), nothing)):
        assert len(PatchMatcher(SETTINGS).match(picture, picture, masks)) == 0


def loftr(path: object) -> ElevationSettings:
    return ElevationSettings.model_validate({**SETTINGS.model_dump(), "matcher": "loftr", "loftr": str(path)})


def test_loftr_without_kornia_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    monkeypatch.setitem(sys.modules, "kornia.feature", None)
    with pytest.raises(UserError, match=r"cad\[elevation\]"):
        load_matcher(loftr("weights.ckpt"), CPU)


def test_settings_name_weights_for_loftr_alone():
    with pytest.raises(ValueError, match="loftr"):
        ElevationSettings.model_validate({**SETTINGS.model_dump(), "matcher": "loftr"})
    with pytest.raises(ValueError, match="odd"):
        ElevationSettings.model_validate({**SETTINGS.model_dump(), "patch_px": 6})


class Code:
    def __reduce__(self):
        return (print, ("executed",))


def test_weights_with_code_are_refused_unexecuted(tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "more": Code()}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"evil.ckpt.*nothing in it is executed"):
        read_weights(tmp_path / "evil.ckpt")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(("name", "content"), [("a.safetensors", b"12"), ("b.ckpt", b"no checkpoint"), ("c.ckpt", b"")])
def test_broken_weights_are_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.*elevation.loftr"):
        read_weights(tmp_path / name)


def test_missing_weights_say_what_to_place(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.ckpt: no such file.*loftr_outdoor.ckpt"):
        read_weights(tmp_path / "nowhere.ckpt")


def test_both_forms_of_weights_are_read(tmp_path):
    tensors = {"a.b": torch.arange(3.0)}
    torch.save({"state_dict": tensors}, tmp_path / "a.ckpt")
    save_file(tensors, tmp_path / "a.safetensors")
    for name in ("a.ckpt", "a.safetensors"):
        assert read_weights(tmp_path / name)["a.b"].tolist() == [0, 1, 2]


@pytest.fixture(scope="session")
def loftr_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoFTR as published, with random weights."""
    feature = pytest.importorskip("kornia.feature", reason="the extra `elevation` is not installed")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("loftr") / "loftr.safetensors"
    save_file({k: v.contiguous() for k, v in feature.LoFTR(pretrained=None).state_dict().items()}, path)
    return path


def test_loftr_is_loaded_and_its_points_are_in_image_sides(loftr_weights, monkeypatch):
    """Random weights match nothing surely; its coarse threshold is lowered, so that what they match comes back."""
    matcher = load_matcher(loftr(loftr_weights), CPU)
    monkeypatch.setattr(matcher.network.coarse_matching, "thr", 0.0)
    picture = texture(0, 0)
    matches = matcher.match(picture, picture, (everywhere(picture), everywhere(picture)))
    assert len(matches) > 0
    assert ((matches.first >= 0) & (matches.first < 1) & (matches.second >= 0) & (matches.second < 1)).all()
    # LoFTR's first ends lie on its 8 px grid, of the 256 px to which a picture is enlarged.
    cells = matches.first * 256 / 8
    assert (cells - cells.round()).abs().max() < 1e-4


def test_tensors_of_another_network_are_refused(loftr_weights, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other.safetensors: its tensors are not LoFTR's"):
        load_matcher(loftr(tmp_path / "other.safetensors"), CPU)
