"""`cad toyworld pruning`: the main job's own samples, their truth and the report."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import yaml
from standins import model_paths
from typer.testing import CliRunner

from cad.artifacts import InputArtifact, PriorCache, PriorCacheWriter, digest
from cad.camera import Poses
from cad.cli import toyworld as cli
from cad.context import Context
from cad.errors import UserError
from cad.prior.pictures import foreground
from cad.prior.sample import sample_prior, sample_views
from cad.toyworld import pruning, pruning_report
from cad.toyworld.dataset import Dataset
from cad.toyworld.diffusion import train_zero123
from cad.toyworld.settings import ToyworldSettings
from cad.toyworld.thresholds import Thresholds, resample
from cad.toyworld.world import HELD_OUT, instance, render_views
from cad.tracking import Tracker

ROOT = Path(__file__).parents[2]
MINI = ROOT / "experiments/profile/mini.yaml"
CPU = torch.device("cpu")
FILES = ("pruning.md", "pruning.csv", "pruning.png")


def silent(text: str) -> None:
    pass


@pytest.fixture(scope="module", autouse=True)
def few_instances(settings: ToyworldSettings) -> Any:
    """Two of the eight families: the command takes every family, and each object's truth takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning, "families", lambda: ["robot", "car"])
        patch.setattr("cad.prior.truth.BANK", 6)
        yield


@pytest.fixture(scope="module")
def trained(weights: Path, data: Dataset, settings: ToyworldSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CLIP and a hardly trained Zero-1-to-3."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "clip").symlink_to(weights / "clip")
    place = tmp_path_factory.mktemp("training")
    train_zero123(settings.zero123, data, 0, weights, place, folder / "zero123", silent)
    return folder


@pytest.fixture(scope="module")
def loose(settings: ToyworldSettings) -> ToyworldSettings:
    """What an untrained model draws is seldom good; a rule without a bound takes what there is."""
    return settings.model_copy(update={"pruning": settings.pruning.model_copy(update={"min_recall": 0.0})})


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mini with two steps, two samples and one thread."""
    content = yaml.safe_load(MINI.read_text())
    content["runtime"]["threads"] = 1
    content["prior"] |= {"steps": 2, "samples": 2, "batch": 3}
    path = tmp_path_factory.mktemp("profile") / "mini.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module", autouse=True)
def lenient_truth() -> Any:
    """Views of an untrained model are all bad; with these bounds some are good."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cad.prior.truth.MIN_IOU", 0.1)
        patch.setattr("cad.prior.truth.MAX_ANGLE_DEG", 120.0)
        yield


@pytest.fixture(scope="module")
def proven(
    loose: ToyworldSettings, profile: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """A folder with work/ and reports/ of one whole run, and what it said."""
    folder = tmp_path_factory.mktemp("proven")
    told: list[str] = []
    pruning.prove(loose, profile, folder / "work", trained, folder / "reports", told.append)
    return folder, told


def test_the_report_is_complete(proven: tuple[Path, list[str]], profile: Path) -> None:
    folder, told = proven
    rows = list(csv.DictReader((folder / "reports/pruning.csv").open()))
    ways = [
        "keep all, first sample", "keep all", "random, same share as both", "geometry only", "CLIP only", "both checks",
    ]  # fmt: skip
    assert [(row["split"], row["way"]) for row in rows] == [(s, w) for s in ("train", "held-out") for w in ways]
    by_way = {row["way"]: row for row in rows if row["split"] == "held-out"}
    assert all(row["poses"] == "4" for row in rows)
    assert by_way["keep all"]["share"] == by_way["keep all"]["recall"] == "1.000000"
    assert by_way["random, same share as both"]["precision"] in (by_way["keep all"]["precision"], "")
    assert by_way["random, same share as both"]["share"] == by_way["both checks"]["share"]
    assert by_way["geometry only"]["min_clip_similarity"] == by_way["CLIP only"]["max_bad_pixels"] == ""
    assert all(len(row["zero123"]) == len(row["clip"]) == 64 for row in rows)
    page = (folder / "reports/pruning.md").read_text()
    both = by_way["both checks"]
    assert f"`max_bad_pixels: {both['max_bad_pixels']}`" in page
    assert "| random, same share as both | | |" in page.replace("|  |", "| | |").replace("|  |", "| |")
    assert (
        told[0]
        == f"chosen: max_bad_pixels {both['max_bad_pixels']}, min_clip_similarity " + (both["min_clip_similarity"])
    )
    assert str(profile) in told[1]
    remarks = [line.split(":")[0] for line in told[2:]]
    assert len(remarks) == 2  # each grid has two candidates, so that any choice is at an end
    assert all(f"both checks, {remark}" in page for remark in remarks)
    assert "geometry only, max_bad_pixels" in page


def test_an_interrupted_run_goes_on_to_the_same_report(
    proven: tuple[Path, list[str]],
    loose: ToyworldSettings,
    profile: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def counted(*arguments: Any) -> np.ndarray:
        calls.append(1)
        if len(calls) == 4 and not resumed:  # the second of the second instance's two batches
            raise KeyboardInterrupt
        return sample_views(*arguments)

    resumed = False
    monkeypatch.setattr("cad.toyworld.pruning.sample_views", counted)
    with pytest.raises(KeyboardInterrupt):
        pruning.prove(loose, profile, tmp_path / "work", trained, tmp_path / "reports", silent)
    assert not (tmp_path / "reports").exists()
    calls.clear()
    resumed = True
    pruning.prove(loose, profile, tmp_path / "work", trained, tmp_path / "reports", silent)
    assert len(calls) == 6  # three of four instances
    for name in FILES:
        assert (tmp_path / "reports" / name).read_bytes() == (proven[0] / "reports" / name).read_bytes()


def test_other_weights_or_settings_find_no_samples(settings: ToyworldSettings, profile: Path) -> None:
    prior = pruning.read_profile(profile).prior
    listed = pruning.list_subjects(settings, prior, 16, "weights", CPU, Path("work"))
    assert len({subject.folder for subject in listed}) == len(listed)
    for changed in (
        pruning.list_subjects(settings, prior, 16, "others", CPU, Path("work")),
        pruning.list_subjects(settings, prior.model_copy(update={"guidance": 1.0}), 16, "weights", CPU, Path("work")),
        pruning.list_subjects(settings.model_copy(update={"seed": 1}), prior, 16, "weights", CPU, Path("work")),
        pruning.list_subjects(settings, prior, 16, "weights", torch.device("cuda"), Path("work")),
    ):
        assert {subject.folder for subject in changed}.isdisjoint({subject.folder for subject in listed})


def test_samples_are_those_of_the_main_job(
    proven: tuple[Path, list[str]], loose: ToyworldSettings, profile: Path, trained: Path, tmp_path: Path
) -> None:
    """`cad.prior.sample.sample_prior` on the same picture under the same name gives the same bytes."""
    prior = pruning.read_profile(profile).prior.model_copy(update={"poses": 2, "shard_poses": 2})
    weights = digest(trained / "zero123")
    subject = pruning.list_subjects(loose, prior, 16, weights, CPU, proven[0] / "work/pruning")[-1]
    mask = np.ones((16, 16), bool)
    InputArtifact.write(tmp_path / "input", subject.reference, mask, "a toy", subject.name, 180.0, 70.0, "none")
    context = Context(loose.seed, subject.name, torch.device("cpu"), Tracker(None, None))
    models = model_paths(zero123=trained / "zero123")
    sample_prior(prior, loose.camera, models, tmp_path / "input", tmp_path / "prior", context)
    ours, theirs = (PriorCache.open(folder) for folder in (subject.folder, tmp_path / "prior"))
    np.testing.assert_array_equal(ours.azimuth, theirs.azimuth)
    np.testing.assert_array_equal(ours.load(), theirs.load())


class ByBrightness:
    """A CLIP whose similarity to the reference is 1 for a black picture and 0 for a white one."""

    def __init__(self) -> None:
        self.references = 0

    def images(self, images: np.ndarray) -> torch.Tensor:
        shade = torch.from_numpy(1 - images.mean((1, 2, 3)) / 255)
        if self.references == 0:  # the reference itself comes first
            self.references = 1
            shade = torch.ones(len(images), dtype=torch.float64)
        return shade[:, None]


def test_a_pose_is_good_when_its_chosen_sample_is(
    settings: ToyworldSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pose 0 has an empty picture and the truth, pose 1 the truth and a black square; the darker one is chosen."""
    monkeypatch.setattr("cad.prior.truth.MIN_IOU", 0.8)
    item = instance("robot", HELD_OUT)
    poses = Poses(azimuth=torch.tensor([3.0, 1.0]).double(), polar=torch.tensor([1.2, 1.2]).double())
    true = render_views(item, poses, settings.camera, 32)
    views = np.full((2, 2, 32, 32, 3), 255, np.uint8)
    views[0, 1], views[1, 0] = true.images
    views[1, 1] = 0
    writer = PriorCacheWriter(tmp_path, poses, [0, 1], 2, 32, 2)
    writer.write_shard(0, views)
    writer.finish()
    subject = pruning.Subject("held-out", item, true.images[0], tmp_path)
    prune = pruning.read_profile(MINI).prune
    assert (prune.white_threshold, prune.dilation_px) == (240, 2)
    table = pruning.score([subject], settings, prune, ByBrightness())  # type: ignore[arg-type]  # a stand-in
    assert table["good"].tolist() == [True, False]
    assert table["first_good"].tolist() == [False, True]
    shown = foreground(true.images, 240)
    assert table["bad_pixels_max"][0] == shown[0].sum()  # nothing is shared with an empty picture
    assert table["bad_pixels_max"][1] == 32 * 32 - dilated(shown[1]).sum()
    assert table["clip_min"].tolist() == pytest.approx([0.0, 1 - true.images[1].mean() / 255])
    assert table["subject"].tolist() == [f"robot-{HELD_OUT}"] * 2


def dilated(mask: np.ndarray) -> np.ndarray:
    """All within two pixels, by shifts."""
    wide = np.pad(mask, 2)
    side = len(mask)
    return np.any([wide[y : y + side, x : x + side] for y in range(5) for x in range(5)], axis=0)


def test_each_check_alone_has_a_threshold_of_its_own(settings: ToyworldSettings) -> None:
    """Alone, geometry has to be strict to be precise; beside CLIP, which finds the bad pose, it need not be."""
    rows = [("a", 1, 0.9, True), ("a", 5, 0.9, True), ("b", 5, 0.1, False), ("b", 9, 0.1, False)]
    train = pandas.DataFrame(rows, columns=["subject", "bad_pixels_max", "clip_min", "good"])
    update = {"max_bad_pixels": [1, 5, 9], "min_clip_similarity": [0.0, 0.5], "min_recall": 0.5}
    ways = pruning.choose_thresholds(train, settings.pruning.model_copy(update=update))
    assert ways == {"geometry only": (1, None), "CLIP only": (None, 0.5), "both checks": (9, 0.5)}


def test_the_controls_are_measured_on_the_same_poses() -> None:
    """Of four poses two are good as chosen and one at its first sample; both checks keep a good and a bad one."""
    rows = [
        ("a", 1, 0.9, True, True),
        ("a", 9, 0.9, True, False),
        ("b", 1, 0.9, False, False),
        ("b", 9, 0.1, False, False),
    ]
    table = pandas.DataFrame(rows, columns=["subject", "bad_pixels_max", "clip_min", "good", "first_good"])
    ways = {"both checks": Thresholds(5, 0.5)}
    found = pruning.compare(table, ways, resample(2, 10, torch.Generator().manual_seed(0)))
    values = {row.name: (row.kept, row.precision.value, row.recall.value) for row in found}
    assert values == {
        "keep all, first sample": (4, 0.25, 1.0),
        "keep all": (4, 0.5, 1.0),
        "random, same share as both": (2, 0.5, 0.5),
        "both checks": (2, 0.5, 0.5),
    }


def test_values_inside_their_grids_are_not_remarked_on(settings: ToyworldSettings) -> None:
    table = pandas.DataFrame(
        [("a", 1, 0.9, True, True), ("b", 9, 0.9, False, True)],
        columns=["subject", "bad_pixels_max", "clip_min", "good", "first_good"],
    )
    rows = pruning.compare(table, {"both checks": Thresholds(5, 0.5)}, np.ones((3, 2), int))
    prior, digests = pruning.read_profile(MINI).prior, {"clip": "0"}
    pages = []
    for grid in ([1, 5, 9], [1, 5]):
        wanted = settings.pruning.model_copy(update={"max_bad_pixels": grid, "min_clip_similarity": [0.1, 0.5, 0.9]})
        measured = {"train": rows, "held-out": rows}
        pages.append(pruning_report.markdown(measured, Thresholds(5, 0.5), wanted, prior, digests))
    assert "At an end" not in pages[0]
    assert "both checks, max_bad_pixels 5 is the largest of its candidates." in pages[1]


def test_the_curve_goes_by_recall_and_leaves_out_what_keeps_nothing() -> None:
    rows = [("a", 1, 0.9, True), ("a", 5, 0.9, False), ("b", 9, 0.1, True)]
    table = pandas.DataFrame(rows, columns=["subject", "bad_pixels_max", "clip_min", "good"])
    recall, precision = pruning_report.curve(table, [Thresholds(n, None) for n in (9, 5, 1, 0)])
    assert recall == [0.5, 0.5, 1.0]
    assert precision == pytest.approx([1.0, 0.5, 2 / 3])


def test_the_command_finds_the_samples_of_a_former_run_and_writes_the_same(
    proven: tuple[Path, list[str]],
    loose: ToyworldSettings,
    profile: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cad.toyworld.pruning.sample_views", None)
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump(loose.model_dump(mode="json")))
    options = {
        "params": params, "profile": profile, "work": proven[0] / "work", "weights": trained,
        "reports": tmp_path / "reports",
    }  # fmt: skip
    ended = CliRunner().invoke(cli.app, ["pruning", *(f"--{key}={value}" for key, value in options.items())])
    assert ended.exit_code == 0, ended.output
    assert "chosen: max_bad_pixels" in ended.output
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == sorted(FILES)
    for name in FILES:
        assert (tmp_path / "reports" / name).read_bytes() == (proven[0] / "reports" / name).read_bytes()


def test_more_instances_than_were_trained_on_are_a_users_fault(settings: ToyworldSettings, tmp_path: Path) -> None:
    wanted = settings.model_copy(update={"pruning": settings.pruning.model_copy(update={"instances": 3})})
    with pytest.raises(UserError, match=r"pruning\.instances: 3 is more than data\.train_instances = 2; lower it"):
        pruning.prove(wanted, MINI, tmp_path / "work", tmp_path / "weights", tmp_path / "reports", silent)
    assert list(tmp_path.iterdir()) == []
