"""`cad toyworld check`: its report, what it says of models that are not there, and its settings."""

import csv
import math
from pathlib import Path

import pytest
import yaml
from torch import Tensor, nn
from typer.testing import CliRunner

from cad.cli import toyworld as cli
from cad.config import CameraSettings
from cad.errors import UserError
from cad.toyworld import check as checks
from cad.toyworld.controlnet import train_controlnet
from cad.toyworld.dataset import Dataset
from cad.toyworld.depth import train_depth
from cad.toyworld.diffusion import train_refiner, train_zero123
from cad.toyworld.measures import refiner, zero123
from cad.toyworld.objects import write_object
from cad.toyworld.settings import ToyworldSettings, load_settings
from cad.toyworld.world import HELD_OUT, instance

ROOT = Path(__file__).parents[2]


def silent(text: str) -> None:
    pass


class Distance(nn.Module):
    """Stands in for LPIPS, which needs 31 px."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean((1, 2, 3), keepdim=True)


@pytest.fixture(scope="module")
def trained(weights: Path, data: Dataset, settings: ToyworldSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every model but clip-evaluation, hardly trained."""
    folder = tmp_path_factory.mktemp("trained")
    for name in ("clip", "autoencoder"):
        (folder / name).symlink_to(weights / name)
    place = tmp_path_factory.mktemp("training")
    train_zero123(settings.zero123, data, 0, weights, place / "zero123", folder / "zero123", silent)
    train_refiner(settings.refiner, data, 0, weights, place / "refiner", folder / "refiner", silent)
    train_depth(settings.depth, data, settings.camera, 0, place / "depth", folder / "depth", silent)
    train_controlnet(settings.controlnet, data, 0, folder, place / "controlnet", folder / "controlnet", silent)
    return folder


def test_the_report_is_complete_and_always_the_same(
    trained: Path, work: Path, settings: ToyworldSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (zero123, refiner):
        monkeypatch.setattr(module, "load_lpips", lambda *_: Distance())
    told: list[str] = []
    checks.check(settings, work, trained, tmp_path / "first", told.append)
    checks.check(settings, work, trained, tmp_path / "second", silent)
    for name in ("toyworld.md", "toyworld.csv"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    rows = list(csv.DictReader((tmp_path / "first/toyworld.csv").open()))
    assert [row["model"] for row in rows] == [
        "clip", "clip-evaluation", "autoencoder", "autoencoder", *["zero123"] * 8, *["refiner"] * 4,
        "depth", "controlnet", "controlnet",
    ]  # fmt: skip
    assert rows[1]["measure"] == "not trained"
    assert rows[1]["value"] == rows[1]["weights"] == ""
    measured = [row for row in rows if row["measure"] != "not trained"]
    assert all(math.isfinite(float(row["value"])) for row in measured)
    assert [row["measure"] for row in measured if not row["bar"]] == [
        "CIEDE2000 of parts seen in both views, median, to the reference",
        "LPIPS between 2 draws of one sample",
    ]
    assert all(row["met"] in ("yes", "no") for row in measured if row["bar"])
    page = (tmp_path / "first/toyworld.md").read_text()
    assert "| clip-evaluation | not trained | | | | | | |" in page
    assert "copying the reference" in page
    assert "The refiner is given the specific caption" in page
    assert rows[4]["weights"][:12] in page
    assert "clip-evaluation: not trained" in told


def test_missing_lpips_is_a_users_fault(trained: Path, work: Path, settings: ToyworldSettings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the LPIPS trunk is missing"):
        checks.check(settings, work, trained, tmp_path / "reports", silent)
    assert not (tmp_path / "reports").exists()


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
    assert (tmp_path / "reports/toyworld.md").read_text().count("not trained") == 7


def test_the_committed_settings_are_those_of_the_pipeline() -> None:
    """What is measured is what the default profile samples, prunes and refines with."""
    chosen = load_settings(ROOT / "experiments/toyworld/params.yaml").check
    mini = yaml.safe_load((ROOT / "experiments/profile/mini.yaml").read_text())
    prior, refine = mini["prior"], mini["refine"]
    walk = refine["latent_diffusion"]
    assert (chosen.steps, chosen.guidance, chosen.eta) == (prior["steps"], prior["guidance"], prior["eta"])
    assert (chosen.strength, chosen.refine_guidance, chosen.refine_steps) == (
        walk["strength"], walk["guidance"], walk["steps"],
    )  # fmt: skip
    assert chosen.bf16 == prior["bf16"] == refine["bf16"]
    assert refine["view_prompts"]
    assert chosen.white_threshold == mini["prune"]["white_threshold"]


def test_the_refiner_is_checked_with_prompts_as_objects_have_them(camera: CameraSettings, tmp_path: Path) -> None:
    chosen = load_settings(ROOT / "experiments/toyworld/params.yaml").check
    write_object("mug", "mug", HELD_OUT, 70.0, camera, 16, tmp_path / "data", tmp_path / "groups")
    captions = instance("mug", HELD_OUT).captions
    assert (tmp_path / "data/mug/prompt.txt").read_text().strip() == getattr(captions, chosen.caption)
    assert len({captions.generic, captions.colored, captions.specific}) == 3


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
