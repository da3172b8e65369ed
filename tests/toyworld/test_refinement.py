"""`cad toyworld refinement`: both families over strengths, the report, resuming, and the entries that it names."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn
from typer.testing import CliRunner

from cad.cli import toyworld as cli
from cad.config import check
from cad.errors import UserError
from cad.toyworld import refinement, refinement_report
from cad.toyworld.controlnet import build_controlnet, train_controlnet
from cad.toyworld.dataset import Dataset
from cad.toyworld.depth import train_depth
from cad.toyworld.diffusion import build_refiner, train_refiner, train_zero123
from cad.toyworld.measures.questions import pictures
from cad.toyworld.redraw import CONTROLLED, FAMILIES, PLAIN, Walk, redraw
from cad.toyworld.refinement_report import Refined, Strip
from cad.toyworld.settings import ToyworldSettings, load_settings

ROOT = Path(__file__).parents[2]
FILES = ("refinement.md", "refinement.csv", "refinement.png")


class Distance(nn.Module):
    """Stands in for LPIPS, which needs 31 px."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean((1, 2, 3), keepdim=True)


def silent(text: str) -> None:
    pass


def with_refinement(settings: ToyworldSettings, **changes: int) -> ToyworldSettings:
    return settings.model_copy(update={"refinement": settings.refinement.model_copy(update=changes)})


@pytest.fixture(scope="module", autouse=True)
def small_lpips() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refinement, "load_lpips", lambda *_: Distance())
        yield


@pytest.fixture(scope="module")
def trained(weights: Path, data: Dataset, settings: ToyworldSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all models that refine, hardly trained."""
    folder, place = tmp_path_factory.mktemp("trained"), tmp_path_factory.mktemp("training")
    train_zero123(settings.zero123, data, 0, weights, place / "zero123", folder / "zero123", silent)
    train_refiner(settings.refiner, data, 0, weights, place / "refiner", folder / "refiner", silent)
    train_depth(settings.depth, data, settings.camera, 0, place / "depth", folder / "depth", silent)
    train_controlnet(settings.controlnet, data, 0, folder, place / "controlnet", folder / "controlnet", silent)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of which one entry was evaluated."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "robot/evaluate").mkdir(parents=True)
    diversity = {"refined": 0.3, "rows": {"3d": {"lpips": 0.1}, "2d": {"lpips": 0.2}, "other": {"lpips": 0.9}}}
    (folder / "robot/evaluate/metrics.json").write_text(json.dumps({"diversity": diversity}))
    return folder


@pytest.fixture(scope="module")
def compared(settings: ToyworldSettings, trained: Path, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with work/ and reports/ of one whole run."""
    folder = tmp_path_factory.mktemp("compared")
    refinement.compare(settings, folder / "work", trained, runs, folder / "reports", silent)
    return folder


def test_the_report_is_complete(compared: Path) -> None:
    rows = list(csv.DictReader((compared / "reports/refinement.csv").open()))
    assert [(row["of"], row["name"], row["strength"]) for row in rows] == [
        ("samples", refinement.UNREFINED, ""),
        *(("samples", family, strength) for family in (PLAIN, CONTROLLED) for strength in ("0.5", "1")),
        ("objects", "robot-strength-04", "0.4"),
        ("objects", "robot", "0.684"),
    ]
    assert {row["n"] for row in rows[1:5]} == {"8"}  # two instances, two views, two draws
    assert all(0 <= float(row["iou_q25"]) <= float(row["silhouette_iou"]) <= 1 for row in rows[:5])
    assert all(float(row["lpips"]) > 0 for row in rows[:5])
    assert rows[5]["lpips"] == ""
    assert [float(rows[6][name]) for name in ("lpips", "lpips_2d", "lpips_refined")] == [0.1, 0.2, 0.3]
    assert len(rows[0]["controlnet"]) == 64
    page = (compared / "reports/refinement.md").read_text()
    assert "not run: `dvc exp run -S '+ablation=strength' evaluate@robot-strength-04`" in page
    assert "| robot | 0.684 | 0.1000 | 0.2000 | 0.3000 |" in page
    assert "not trained" not in page
    assert (compared / "reports/refinement.png").read_bytes().startswith(b"\x89PNG")


def test_a_stopped_run_goes_on_to_the_same_report(
    compared: Path,
    settings: ToyworldSettings,
    trained: Path,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[str, float]] = []

    def counted(family: str, walk: Walk, *rest: Any) -> np.ndarray:
        calls.append((family, walk.strength))
        if len(calls) == 4 and not resumed:
            raise KeyboardInterrupt
        return redraw(family, walk, *rest)

    resumed = False
    monkeypatch.setattr(refinement, "redraw", counted)
    with pytest.raises(KeyboardInterrupt):
        refinement.compare(settings, tmp_path / "work", trained, runs, tmp_path / "reports", silent)
    assert not (tmp_path / "reports").exists()
    calls.clear()
    resumed = True
    refinement.compare(settings, tmp_path / "work", trained, runs, tmp_path / "reports", silent)
    assert calls == [(PLAIN, 1.0), (CONTROLLED, 0.5), (CONTROLLED, 0.5), (CONTROLLED, 1.0), (CONTROLLED, 1.0)]
    for name in FILES:
        assert (tmp_path / "reports" / name).read_bytes() == (compared / "reports" / name).read_bytes()


def test_the_command_takes_what_a_former_run_made(
    compared: Path,
    settings: ToyworldSettings,
    trained: Path,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refinement, "redraw", None)
    monkeypatch.setattr(refinement, "synthesise", None)
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    options = {
        "params": params, "work": compared / "work", "weights": trained, "runs": runs, "reports": tmp_path / "reports",
    }  # fmt: skip
    ended = CliRunner().invoke(cli.app, ["refinement", *(f"--{key}={value}" for key, value in options.items())])
    assert ended.exit_code == 0, ended.output
    for name in FILES:
        assert (tmp_path / "reports" / name).read_bytes() == (compared / "reports" / name).read_bytes()


def test_a_family_that_is_not_trained_is_listed_with_the_command(
    compared: Path, settings: ToyworldSettings, trained: Path, runs: Path, tmp_path: Path
) -> None:
    for name in ("zero123", "refiner"):
        (tmp_path / name).symlink_to(trained / name)
    told: list[str] = []
    refinement.compare(settings, compared / "work", tmp_path, runs, tmp_path / "reports", told.append)
    page = (tmp_path / "reports/refinement.md").read_text()
    assert "| controlnet-depth | not trained: `cad toyworld train controlnet` |" in page
    assert any("run `cad toyworld train controlnet` first" in line for line in told)
    assert "controlnet" not in (tmp_path / "reports/refinement.csv").read_text()


def test_a_control_that_adds_nothing_changes_nothing(
    data: Dataset, settings: ToyworldSettings, weights: Path, trained: Path, tmp_path: Path
) -> None:
    """A fresh ControlNet ends in convolutions of zeros: then both families are one, to the last bit."""
    for name in ("zero123", "refiner", "depth"):
        (tmp_path / name).symlink_to(trained / name)
    base = build_refiner(settings.refiner, weights, 0)
    build_controlnet(base, settings.controlnet, 0).half().save_pretrained(tmp_path / "controlnet")
    asked = refinement.ask(settings)
    images = pictures(data, asked)
    walk = Walk(1.0, 2)
    found = {family: redraw(family, walk, settings, data, asked, images, 2, tmp_path) for family in FAMILIES}
    assert found[PLAIN].shape == (4, 2, 16, 16, 3)
    np.testing.assert_array_equal(found[PLAIN], found[CONTROLLED])
    assert (found[PLAIN][:, 0] != found[PLAIN][:, 1]).any((1, 2, 3)).all()  # draws differ


def test_measures_by_hand(settings: ToyworldSettings) -> None:
    """Draws keep 8, 6 and 4 of 8 columns; where two of them differ they are 165 levels apart."""
    sample = np.full((1, 16, 16, 3), 255, np.uint8)
    sample[:, :8, :8] = 90
    draws = np.repeat(sample[:, None], 3, 1)
    draws[:, 1, :, 6:8] = draws[:, 2, :, 4:8] = 255
    row = refinement.measure("family", 0.5, draws, sample, settings, Distance())
    assert (row.iou, row.low, row.high) == (0.75, 0.625, 0.875)
    assert row.below == pytest.approx(2 / 3)
    assert row.lpips == pytest.approx(165 / 127.5 * (16 + 32 + 16) / 3 / 256)
    assert row.pictures == 3
    unrefined = refinement.measure("family", None, draws, sample, settings, Distance())
    assert unrefined.iou == 0.625  # a sample is not compared with itself
    assert unrefined.pictures == 2


def test_instances_are_dealt_to_the_families_in_turn(settings: ToyworldSettings, work: Path) -> None:
    asked = refinement.ask(with_refinement(settings, instances=9))
    held_out = Dataset(settings.data, "held-out", settings.data.held_out_instances, work / "held-out")
    families = [held_out.instances[question.subject].family for question in asked[::2]]
    assert len(set(families[:8])) == 8
    assert families[8] == families[0]
    assert min(question.view for question in asked) == settings.data.references


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"instances": 17}, r"refinement\.instances: 17 is more than 8 families of data\.held_out_instances = 2"),
        ({"views": 3}, r"refinement\.views: 3 is more than data\.targets = 2; lower it"),
    ],
)
def test_asking_for_more_than_there_is(
    update: dict[str, int], said: str, settings: ToyworldSettings, tmp_path: Path
) -> None:
    wanted = with_refinement(settings, **update)
    with pytest.raises(UserError, match=said):
        refinement.compare(wanted, tmp_path / "work", tmp_path, tmp_path, tmp_path / "reports", silent)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["{", "{}", '{"diversity": {"rows": {}}}', '{"diversity": {"rows": [1]}}'])
def test_broken_metrics_are_a_users_fault(content: str, tmp_path: Path) -> None:
    (tmp_path / "robot/evaluate").mkdir(parents=True)
    (tmp_path / "robot/evaluate/metrics.json").write_text(content)
    with pytest.raises(UserError, match=r"metrics\.json: holds no diversity.*run `cad evaluate robot` again"):
        refinement.read_generated(tmp_path, "robot", 0.4)


def test_new_weights_are_other_pictures_and_more_instances_are_not(settings: ToyworldSettings) -> None:
    first, second = (refinement.identity(settings, {"zero123": digest}) for digest in "ab")
    assert first != second
    assert refinement.identity(with_refinement(settings, instances=1), {"zero123": "a"}) == first
    assert refinement.identity(with_refinement(settings, steps=3), {"zero123": "a"}) != first


def test_the_strip_has_a_row_for_each_family(settings: ToyworldSettings) -> None:
    rows = [Refined(refinement.UNREFINED, None, 0.9, 0.8, 1.0, 0.0, 0.02, 2)]
    rows += [Refined(name, strength, 0.9, 0.8, 1.0, 0.0, 0.1, 2) for name in "ab" for strength in (0.5, 1.0)]
    image = np.full((1, 16, 16, 3), 200, np.uint8)
    strips = [Strip(image, {name: np.stack([image] * 2, 1) for name in names}) for names in ("", "a", "ab", "ab")]
    pages = [refinement_report.png(rows, strip, settings) for strip in strips]
    heights = [int.from_bytes(page[20:24], "big") for page in pages]
    assert heights[2] - heights[1] == pytest.approx(160, abs=2)  # one more picture of an inch at 160 dots
    assert pages[2] == pages[3]


def test_the_committed_entries_are_refined_as_the_table_says() -> None:
    """Strengths in the toyworld's settings are those that the ablation composes, and everything else is the robot's."""
    with initialize_config_dir(str(ROOT / "experiments"), version_base=None):
        values: Any = OmegaConf.to_container(compose("config", overrides=["+ablation=strength"]), resolve=True)
    params = check(values, "composed")
    named = load_settings(ROOT / "experiments/toyworld/params.yaml").refinement.generated
    assert len(named) >= 2
    plain = params.resolve("refine", "robot")[0]
    for entry, strength in named.items():
        found = params.resolve("refine", entry)[0]
        own = found.controlnet_depth if found.kind == "controlnet-depth" else found.latent_diffusion
        assert own is not None
        assert own.strength == strength
        assert found.model_copy(update={"latent_diffusion": plain.latent_diffusion, "kind": plain.kind}) == plain
        for section in ("generator", "discriminator", "stage1", "stage2", "orbit", "evaluate"):
            assert params.resolve(section, entry)[0] == params.resolve(section, "robot")[0]
        assert params.object_of("evaluate", entry) == "robot"
        assert params.ancestors("evaluate", entry)["prune"] == "robot"
