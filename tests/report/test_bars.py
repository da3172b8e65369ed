import copy
import io
import json

import pytest
from rich.console import Console

from cad.errors import UserError
from cad.report.bars import (
    AZIMUTH_SHARE,
    BLIND,
    DIVERSITY_SHARE,
    RELATIVE_IMAGE,
    TELLS,
    Bar,
    from_csv,
    judge,
    show_bars,
    write_bars,
)
from cad.report.measures import MEASURES, from_metrics
from tests.report.conftest import OWN, metrics

CONTROLS = ("copied", "other", "untrained")


def bars_of(change=lambda content: None):
    content = copy.deepcopy(metrics("ab" * 32, 75.0))
    change(content)
    (judged,) = judge([from_metrics("ours", content)])
    return {bar.title: bar for bar in judged.bars}


def missed(change):
    return {title: bar.met for title, bar in bars_of(change).items() if not bar.met}


def setting(*path):
    """A change of one number of a metrics file: the path to it, then its value."""

    def change(content):
        *parents, key, value = path
        for parent in parents:
            content = content[parent]
        content[key] = value

    return change


def test_the_thresholds_are_the_stated_ones():
    assert (AZIMUTH_SHARE, RELATIVE_IMAGE, DIVERSITY_SHARE) == (0.8, 0.7, 0.5)


def test_a_good_result_clears_every_bar():
    assert all(bar.met for bar in bars_of().values())
    assert len(bars_of()) == 5 + 4 + 5 + 5


@pytest.mark.parametrize(
    ("change", "title"),
    [
        (setting("truth", "rows", "3d", "azimuth_right", 0.799), "Azimuth retrieval, 3D"),
        (setting("truth", "rows", "3d", "azimuth_right_seeds", [0.95, 0.79, 1.0]), "Azimuth retrieval, 3D, worst seed"),
        (setting("relative_image", OWN, "3d", 0.69), f"Relative image score, 3D ({OWN})"),
        (setting("diversity", "rows", "3d", "lpips", 0.099), "LPIPS between seeds, 3D: 0.5 x the refined samples'"),
        (setting("diversity", "refined", 0.25), "LPIPS between seeds, 3D: 0.5 x the refined samples'"),
        (setting("consistency", "rows", "3d", "warp_error", 4.0), "Warp error: 3D below 2D"),  # a tie is no win
        (setting("truth", "rows", "copied", "silhouette_iou", 0.85), "3D beats reference copied: Silhouette IoU"),
        (setting("distribution", "rows", "copied", "kid", 39.0), "3D beats reference copied: KID x 1000"),
        (setting("truth", "rows", "other", "azimuth_right", 0.96), "3D beats another object: Azimuth retrieval"),
        (setting("scorers", OWN, "rows", "other", "text", 25.0), f"3D beats another object: Text score ({OWN})"),
        (
            setting("scorers", OWN, "rows", "untrained", "image", 80.0),
            f"3D beats untrained generator: Image score ({OWN})",
        ),
    ],
)
def test_a_worse_number_misses_its_bar_and_no_other(change, title):
    assert missed(change) == {title: False}


def test_a_bar_just_reached_is_met():
    assert not missed(setting("truth", "rows", "3d", "azimuth_right", 0.8))
    assert not missed(setting("diversity", "rows", "3d", "lpips", 0.1))  # half of 0.2
    assert not missed(setting("relative_image", OWN, "3d", 0.7))


def test_what_cannot_tell_is_not_asked():
    """The copied input beats ours on image and text; a true orbit of another object on warp error: no bar is missed."""
    content = metrics("ab" * 32, 75.0)
    assert content["scorers"][OWN]["rows"]["copied"]["image"] > content["scorers"][OWN]["rows"]["3d"]["image"]
    assert content["consistency"]["rows"]["other"]["warp_error"] < content["consistency"]["rows"]["3d"]["warp_error"]
    assert not missed(lambda content: None)


def test_every_pair_of_control_and_measure_is_decided_once():
    tells = [(control, key) for control, keys in TELLS.items() for key in keys]
    assert sorted([*tells, *BLIND]) == sorted((control, key) for control in CONTROLS for key in MEASURES)
    assert len(set(tells) | set(BLIND)) == len(tells) + len(BLIND)


def test_the_truth_wins_on_every_measure_that_is_said_to_tell():
    """Otherwise a perfect object would miss the bar. LPIPS between seeds has no truth."""
    content = metrics("ab" * 32, 75.0)
    measured = from_metrics("ours", content)
    for control, keys in TELLS.items():
        for column in [column for column in measured.columns if column[0] in keys and column[0] != "lpips"]:
            true, fake = measured.value(column, "truth").value, measured.value(column, control).value
            assert true > fake if MEASURES[column[0]].higher else true < fake, (control, column)


@pytest.mark.parametrize("part", ["truth", "distribution", "diversity", "consistency", "relative_image"])
def test_what_was_not_measured_is_not_met_and_stays_in_the_table(part):
    shown = bars_of(lambda content: content.pop(part))
    assert {bar.met for bar in shown.values()} == {True, None}
    assert len(shown) == len(bars_of())


def test_a_single_scorer_of_several_can_miss():
    def add(content):
        content["scorers"]["big"] = copy.deepcopy(content["scorers"][OWN])
        content["scorers"]["big"]["rows"]["other"]["image"] = 99.0

    assert missed(add) == {"3D beats another object: Image score (big)": False}


@pytest.fixture
def two(tmp_path):
    """Two objects: a mug that clears all, a car without a seed's LPIPS and with a warp error above the 2D branch's."""
    car = metrics("ab" * 32, 75.0, "car")
    car["consistency"]["rows"]["3d"]["warp_error"] = 5.0
    del car["diversity"]
    rows = {}
    for name, content in (("CAD, mug", metrics("ab" * 32, 75.0, "mug")), ("CAD, car", car)):
        rows[name] = tmp_path / f"{name}.json"
        rows[name].write_text(json.dumps(content))
    return rows


def test_the_table_has_a_column_of_each_object_and_reads_back(two, tmp_path):
    judged = write_bars(two, tmp_path)
    text = (tmp_path / "bars.md").read_text()
    assert text.startswith("| Bar | mug | met | car | met |\n|:--|--:|--:|--:|--:|\n")
    assert "| Azimuth retrieval, 3D | 95.0% (≥ 80.0%) | yes | 95.0% (≥ 80.0%) | yes |" in text
    assert r"| Warp error: 3D below 2D | 2.00 (\< 4.00) | yes | 5.00 (\< 4.00) | **no** |" in text
    assert "| 0.120 (≥ 0.100) | yes | — (≥ —) | **not measured** |" in text
    assert "CAD, mug: 19 of 19 bars met.\n" in text
    assert "CAD, car: 16 of 19 bars met; missed: " in text
    assert "- Reference copied: image score (100 by construction)" in text
    assert from_csv(tmp_path / "bars.csv") == judged


def test_variants_of_one_object_go_by_their_names(two, tmp_path):
    rows = {"CAD": two["CAD, mug"], "without ADA": two["CAD, mug"]}
    write_bars(rows, tmp_path)
    assert (tmp_path / "bars.md").read_text().startswith("| Bar | CAD | met | without ADA | met |")


def test_the_terminal_shows_what_is_missed(two, tmp_path):
    text = io.StringIO()
    show_bars(write_bars(two, tmp_path), Console(file=text, width=140))
    for said in ("mug", "95.0% (≥ 80.0%)", "not measured", "CAD, car: 16 of 19 bars met", "100 by construction"):
        assert said in text.getvalue()


def test_a_missing_or_foreign_csv_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"bars.csv: missing; run `cad report all`"):
        from_csv(tmp_path / "bars.csv")
    (tmp_path / "bars.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"bars\.csv"):
        from_csv(tmp_path / "bars.csv")


def test_a_bar_without_a_number_says_a_dash():
    assert Bar("x", "image", None, ">=", 0.5).said == "— (≥ 0.50)"
    assert Bar("x", "image", None, ">=", 0.5).met is None
