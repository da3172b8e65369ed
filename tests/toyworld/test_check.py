"""`cad toyworld check`: its measures by hand, its report, and what it says of models that are not there."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from cad.camera import Poses, angle_between
from cad.cli import toyworld as cli
from cad.config import CameraSettings
from cad.errors import UserError
from cad.toyworld import check as checks
from cad.toyworld.dataset import Dataset, view_poses
from cad.toyworld.diffusion import train_refiner, train_zero123
from cad.toyworld.settings import ToyworldSettings, load_settings
from cad.toyworld.world import HELD_OUT, families, instance, render_views


def silent(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def held_out(settings: ToyworldSettings, work: Path) -> Dataset:
    return Dataset(settings.data, "held-out", settings.data.held_out_instances, work / "held-out")


@pytest.fixture(scope="module")
def trained(weights: Path, data: Dataset, settings: ToyworldSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every model but clip-evaluation, hardly trained."""
    folder = tmp_path_factory.mktemp("trained")
    for name in ("clip", "autoencoder"):
        (folder / name).symlink_to(weights / name)
    place = tmp_path_factory.mktemp("training")
    train_zero123(settings.zero123, data, 0, weights, place / "zero123", folder / "zero123", silent)
    train_refiner(settings.refiner, data, 0, weights, place / "refiner", folder / "refiner", silent)
    return folder


def test_psnr_by_hand() -> None:
    """One pixel of four off by (30, 0, 0): within the mask of two pixels the mean square is 900 / 3 / 2 = 150."""
    truth = np.full((1, 2, 2, 3), 100, np.uint8)
    images = truth.copy()
    images[0, 0, 0, 0] = 70  # below: unsigned arithmetic would wrap
    images[0, 1, 1] = 255  # outside the mask
    mask = np.array([[[True, True], [False, False]]])
    assert checks.psnr(images, truth, mask)[0] == pytest.approx(10 * math.log10(255**2 / 150))


def test_psnr_of_a_perfect_match_is_finite() -> None:
    truth = np.zeros((2, 4, 4, 3), np.uint8)
    assert checks.psnr(truth, truth, np.ones((2, 4, 4), bool)) == pytest.approx(20 * math.log10(510))


def test_questions_are_the_first_far_views(held_out: Dataset, settings: ToyworldSettings) -> None:
    asked = checks.questions(settings.check, held_out)
    assert len({q.subject for q in asked}) == len(asked) <= len(families())
    for subject in checks.checked(settings.check, held_out):
        item = held_out.instances[subject]
        assert item.seed == HELD_OUT
        poses = view_poses(item.family, item.seed, settings.data)
        angles = angle_between(poses, poses)[0].rad2deg().tolist()
        far = [view for view, angle in enumerate(angles) if angle > settings.check.min_angle_deg]
        assert [q.view for q in asked if q.subject == subject] == far[:1]


def test_no_far_view_is_a_users_fault(held_out: Dataset, settings: ToyworldSettings) -> None:
    with pytest.raises(UserError, match=r"check\.min_angle_deg: no view lies farther than 179\.9 deg"):
        checks.questions(settings.check.model_copy(update={"min_angle_deg": 179.9}), held_out)


def test_captions_are_distinct_and_of_all_families(held_out: Dataset) -> None:
    chosen = checks.distinct_captions(held_out, len(families()))
    assert {held_out.instances[i].family for i in chosen} == set(families())
    more = checks.distinct_captions(held_out, len(families()) + 3)
    assert more[: len(chosen)] == chosen
    assert len({held_out.instances[i].captions.specific for i in more}) == len(more)


def test_too_many_captions_are_refused(held_out: Dataset) -> None:
    with pytest.raises(UserError, match=r"check\.captions: 1000 is more than the 16"):
        checks.distinct_captions(held_out, 1000)


class Oracle:
    """A CLIP that knows every picture's instance, and answers wrongly for those in `fooled`."""

    def __init__(self, data: Dataset, fooled: int):
        self.known = {view.tobytes(): k for k, views in enumerate(data.images) for view in views}
        self.captions = {item.captions.specific: k for k, item in enumerate(data.instances)}
        self.count, self.fooled = len(data), fooled

    def images(self, images: np.ndarray) -> torch.Tensor:
        found = torch.tensor([self.known[image.tobytes()] for image in images])
        wrong = found < self.fooled
        return torch.nn.functional.one_hot(torch.where(wrong, (found + 2) % self.count, found), self.count).float()

    def texts(self, texts: list[str]) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([self.captions[text] for text in texts]), self.count).float()


@pytest.mark.parametrize(("fooled", "share"), [(0, 1.0), (2, 0.875)])
def test_retrieval_counts_the_pictures_that_find_their_caption(
    fooled: int, share: float, held_out: Dataset, settings: ToyworldSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions 0 and 1 are the robots; of the 8 distinct captions' 16 pictures, the first robot's two are wrong."""
    monkeypatch.setattr(checks.Clip, "load", lambda *_: Oracle(held_out, fooled))
    wanted = settings.model_copy(update={"check": settings.check.model_copy(update={"captions": 8})})
    (found,) = checks.measure_clip("clip", wanted, held_out, Path("unused"))
    assert found.value == pytest.approx(share)
    assert found.baseline == pytest.approx(1 / 8)
    assert found.examples == 16


class Copier:
    """A view synthesiser that returns what it is told to."""

    latent_shape = (4, 8, 8)

    def __init__(self, data: Dataset, asked: list[checks.Question], perfect: bool):
        self.answers = [data.pick(*torch.tensor([[q.subject], [q.view if perfect else 0]])) for q in asked]

    def condition(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return image.flatten(1), image

    def sample(self, embedding: torch.Tensor, *_: object) -> torch.Tensor:
        batch, self.answers = self.answers[: len(embedding)], self.answers[len(embedding) :]
        return torch.cat(batch)


@pytest.mark.parametrize("perfect", [True, False])
def test_the_truth_scores_best_and_copying_scores_its_baseline(
    perfect: bool, held_out: Dataset, settings: ToyworldSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = checks.questions(settings.check, held_out)
    monkeypatch.setattr(checks.Zero123, "load", lambda *_: Copier(held_out, asked, perfect))
    ratio, overlap = checks.measure_zero123("zero123", settings, held_out, Path("unused"))
    assert ratio.examples == overlap.examples == len(asked)
    if perfect:
        assert ratio.value == pytest.approx(20 * math.log10(510))
        assert overlap.value > 0.8  # edge pixels at 16 px: any colour counts here, half coverage in the truth
        assert ratio.baseline is not None
        assert ratio.baseline < 20
    else:
        assert ratio.value == ratio.baseline
        assert overlap.value == overlap.baseline


def test_the_true_silhouettes_are_the_objects_own(
    held_out: Dataset, settings: ToyworldSettings, camera: CameraSettings
) -> None:
    found = checks.true_silhouettes(held_out, [checks.Question(3, 2)], camera)
    item = held_out.instances[3]
    poses = view_poses(item.family, item.seed, settings.data)
    pose = Poses(azimuth=poses.azimuth[2:3], polar=poses.polar[2:3])
    expected = render_views(instance(item.family, item.seed), pose, camera, 16).silhouettes
    np.testing.assert_array_equal(found, expected)


def test_the_report_is_complete_and_always_the_same(
    trained: Path, work: Path, settings: ToyworldSettings, tmp_path: Path
) -> None:
    told: list[str] = []
    checks.check(settings, work, trained, tmp_path / "first", told.append)
    checks.check(settings, work, trained, tmp_path / "second", silent)
    for name in ("toyworld.md", "toyworld.csv"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    rows = list(csv.DictReader((tmp_path / "first/toyworld.csv").open()))
    assert [row["model"] for row in rows] == [
        "clip", "clip-evaluation", "autoencoder", "zero123", "zero123", "refiner",
    ]  # fmt: skip
    assert rows[1]["measure"] == "not trained"
    assert rows[1]["value"] == rows[1]["weights"] == ""
    assert all(math.isfinite(float(row["value"])) for row in rows if row["measure"] != "not trained")
    page = (tmp_path / "first/toyworld.md").read_text()
    assert "| clip-evaluation | not trained | | | | |" in page
    assert "copying the reference" in page
    assert rows[3]["weights"][:12] in page
    assert "clip-evaluation: not trained" in told


def test_samples_do_not_depend_on_the_batch(
    trained: Path, work: Path, settings: ToyworldSettings, tmp_path: Path
) -> None:
    wanted = settings.model_copy(update={"check": settings.check.model_copy(update={"batch": 8})})
    held_out = Dataset(settings.data, "held-out", 2, work / "held-out")
    small, large = (checks.measure_zero123("zero123", s, held_out, trained / "zero123") for s in (settings, wanted))
    for a, b in zip(small, large, strict=True):
        assert a.value == pytest.approx(b.value, abs=0.02)


def test_more_instances_than_there_are_is_a_users_fault(settings: ToyworldSettings, tmp_path: Path) -> None:
    wanted = settings.model_copy(update={"check": settings.check.model_copy(update={"instances": 3})})
    with pytest.raises(UserError, match=r"check\.instances: 3 is more than data\.held_out_instances = 2; lower it"):
        checks.check(wanted, tmp_path / "work", tmp_path / "weights", tmp_path / "reports", silent)
    assert list(tmp_path.iterdir()) == []


def test_the_command_without_any_weights(settings: ToyworldSettings, work: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    assert load_settings(params) == settings
    options = {"params": params, "work": work, "weights": tmp_path / "none", "reports": tmp_path / "reports"}
    ended = CliRunner().invoke(cli.app, ["check", *(f"--{key}={value}" for key, value in options.items())])
    assert ended.exit_code == 0, ended.output
    assert (tmp_path / "reports/toyworld.md").read_text().count("not trained") == 5


def test_the_committed_settings_are_valid() -> None:
    load_settings(Path(__file__).parents[2] / "experiments/toyworld/params.yaml")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("check", "strengh"), 0.5, "check.strengh: Extra inputs are not permitted"),
        (("check", "strength"), 1.5, "check.strength: Input should be less than or equal to 1"),
        (("zero123", "fit", "steps"), 0, "zero123.fit.steps: Input should be greater than or equal to 1"),
    ],
)
def test_a_wrong_setting_is_named(
    path: tuple[str, ...], value: float, said: str, settings: ToyworldSettings, tmp_path: Path
) -> None:
    content = settings.model_dump(mode="json")
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=said):
        load_settings(tmp_path / "params.yaml")


def test_missing_or_broken_settings_are_a_users_fault(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_settings(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("data: [1,")
    with pytest.raises(UserError, match="is not YAML"):
        load_settings(tmp_path / "params.yaml")
