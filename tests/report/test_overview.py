import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cad.artifacts import read_image, write_image
from cad.errors import UserError
from cad.report.canvas import runs
from cad.report.objects import objects_png
from cad.report.overview import WHOLE, Extent, RunFolders, overview_png, shown_poses


def draw_overview(folders: RunFolders, out: Path) -> None:
    out.write_bytes(overview_png(folders))


def test_the_figure_is_drawn_and_deterministic(run, tmp_path):
    for name in ("a.png", "b.png"):
        draw_overview(run, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    picture = read_image(tmp_path / "a.png")[..., :3]
    assert picture.shape[1] > 1500
    assert (picture[0] == 255).all()  # a white page
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 500  # with pictures on it
    assert b"matplotlib" not in (tmp_path / "a.png").read_bytes().lower()[:400]


def test_without_truth_there_is_a_row_less(run, tmp_path):
    draw_overview(run, tmp_path / "a.png")
    photograph = dataclasses.replace(run, evaluate=tmp_path)
    draw_overview(photograph, tmp_path / "b.png")
    assert read_image(tmp_path / "b.png").shape[0] < read_image(tmp_path / "a.png").shape[0]


def decisions(kept: list[bool]) -> pd.DataFrame:
    azimuth = np.random.default_rng(0).uniform(0, 6, len(kept))
    return pd.DataFrame({"pose": range(len(kept)), "azimuth": azimuth, "kept": kept})


@pytest.mark.parametrize(
    ("kept", "rejected", "shown"), [(20, 20, (5, 3)), (20, 0, (8, 0)), (2, 20, (2, 6)), (3, 1, (3, 1))]
)
def test_shown_poses(kept, rejected, shown):
    table = decisions([True] * kept + [False] * rejected)
    chosen = shown_poses(table, WHOLE)
    assert (int(table["kept"][chosen].sum()), int((~table["kept"][chosen]).sum())) == shown
    assert len(set(chosen)) == len(chosen) <= WHOLE.poses
    assert table["azimuth"][chosen].is_monotonic_increasing


def test_a_smaller_figure_shows_fewer_of_both():
    small = Extent(poses=4, rejected=1, samples=1, draws=2, azimuths=6)
    table = decisions([True] * 20 + [False] * 20)
    assert sorted(table["kept"][shown_poses(table, small)]) == [False, True, True, True]


def test_the_figure_of_all_objects_has_a_band_for_each(run, tmp_path):
    pictures = []
    for k, runs_shown in enumerate(([run], [run, run], [run, run])):
        (tmp_path / f"{k}.png").write_bytes(objects_png(runs_shown))
        pictures.append(read_image(tmp_path / f"{k}.png")[..., :3].astype(int))
    one, two, again = pictures
    assert (two == again).all()
    assert one.shape[1] == two.shape[1] > 1800
    assert 1.7 * len(one) < len(two) < 2 * len(one)  # the heads stand once
    band = len(one) // 2
    assert abs(two[-band:] - one[-band:]).mean() < 1  # the second band is the same run again


def test_the_figure_of_all_objects_names_a_broken_folder(run, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        objects_png([run, dataclasses.replace(run, orbit=tmp_path / "nowhere")])


def test_runs_of_labels():
    assert runs(["a", "a", "b", "a"]) == [("a", 0, 2), ("b", 2, 1), ("a", 3, 1)]


@pytest.mark.parametrize("width", [24 * 64 - 1, 23 * 64, 12 * 64, 48 * 64])
def test_a_strip_of_another_width_is_a_user_error(run, tmp_path, width):
    write_image(tmp_path / "views/truth.png", np.zeros((64, width, 3), np.uint8))
    said = rf"truth\.png: is {width} x 64 pixels, not the 1536 x 64 of 24 views; .*`cad evaluate` again"
    with pytest.raises(UserError, match=said):
        overview_png(dataclasses.replace(run, evaluate=tmp_path))


def test_a_missing_folder_is_a_user_error(run, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        draw_overview(dataclasses.replace(run, prior=tmp_path / "nowhere"), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_a_corrupt_shard_is_named(run, tmp_path):
    shutil.copytree(run.refine, tmp_path / "refine")
    shard = tmp_path / "refine/images-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x07")
    with pytest.raises(UserError, match="images-00000"):
        draw_overview(dataclasses.replace(run, refine=tmp_path / "refine"), tmp_path / "a.png")


def test_reports_need_no_torch(run, tmp_path):
    """Checked in a fresh process, while drawing the figure and the tables."""
    code = (
        "import sys, dataclasses; from pathlib import Path\n"
        "import cad.report.page; from cad.report.overview import RunFolders, overview_png\n"
        "from cad.report.table1_forms import write_table1\n"
        f"run = RunFolders(**{{k: Path(v) for k, v in { ({k: str(v) for k, v in vars(run).items()})!r}.items()}})\n"
        "overview_png(run)\n"
        f"write_table1({{'ours': run.evaluate / 'metrics.json'}}, Path({str(tmp_path)!r}))\n"
        "print(sorted({'torch', 'transformers', 'diffusers', 'wandb'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
