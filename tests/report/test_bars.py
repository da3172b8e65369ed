import copy
import io
import json
import math

import pytest
from rich.console import Console

from cad.errors import UserError
from cad.report.bars import (
    AZIMUTH_SHARE,
    BLIND,
    DIVERSITY_SHARE,
    EXPLAINED,
    RELATIVE_IMAGE,
    SHARE_LEAST,
    TELLS,
    Bar,
    from_csv,
    judge,
    show_bars,
    write_bars,
)
from cad.report.measures import MEASURES, from_metrics
from tests.report.conftest import OWN, metrics

BELOW = "Warp / still: 3D below 2D"
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
    assert (AZIMUTH_SHARE, RELATIVE_IMAGE, DIVERSITY_SHARE, EXPLAINED, SHARE_LEAST) == (0.8, 0.7, 0.5, 1.0, 0.5)


def test_a_good_result_clears_every_bar():
    assert all(bar.met for bar in bars_of().values())
    assert len(bars_of()) == 7 + 4 + 5 + 5


@pytest.mark.parametrize(
    ("change", "title"),
    [
        (setting("truth", "rows", "3d", "azimuth_right", 0.799), "Azimuth retrieval, 3D"),
        (setting("truth", "rows", "3d", "azimuth_right_seeds", [0.95, 0.79, 1.0]), "Azimuth retrieval, 3D, worst seed"),
        (setting("relative_image", OWN, "3d", 0.69), f"Relative image score, 3D ({OWN})"),
        (setting("diversity", "rows", "3d", "lpips", 0.099), "LPIPS between seeds, 3D: 0.5 x the refined samples'"),
        (setting("diversity", "refined", 0.25), "LPIPS between seeds, 3D: 0.5 x the refined samples'"),
        (setting("consistency", "rows", "3d", "ratio", 0.5), f"{BELOW}, each its own depth"),  # a tie is no win
        (setting("consistency", "one_depth", "3d", "ratio", 0.5), f"{BELOW}, both through 3D's depth"),
        (setting("truth", "rows", "copied", "silhouette_iou", 0.85), "3D beats reference copied: Silhouette IoU"),
        (setting("distribution", "rows", "copied", "kid", 39.0), "3D beats reference copied: CLIP-feature KID x 1000"),
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


WARPED = ("Warp / still, 3D", f"{BELOW}, each its own depth", "3D beats reference copied: Warp / still")


def test_a_depth_that_explains_nothing_misses_whatever_the_2d_branch_does():
    def change(content):
        content["consistency"]["rows"]["3d"]["ratio"] = 1.0
        content["consistency"]["rows"]["2d"]["ratio"] = 2.0

    assert missed(change) == {"Warp / still, 3D": False}


def test_the_copy_on_a_billboard_loses_although_its_error_is_the_smallest():
    content = metrics("ab" * 32, 75.0)
    rows = content["consistency"]["rows"]
    assert rows["copied"]["warp_error"] < rows["3d"]["warp_error"]
    bar = bars_of()["3D beats reference copied: Warp / still"]
    assert (bar.met, bar.needed, bar.said) == (True, math.inf, r"0.25 (< ∞)")


def test_views_that_do_not_change_miss_every_bar_of_the_warp():
    """Such a result is the copy itself: no ratio, and no win over it."""
    assert missed(lambda content: content["consistency"]["rows"]["3d"].pop("ratio")) == dict.fromkeys(WARPED, False)


def test_a_2d_branch_that_does_not_change_is_no_measure():
    assert missed(lambda content: content["consistency"]["rows"]["2d"].pop("ratio")) == {WARPED[1]: None}


@pytest.mark.parametrize(
    ("part", "row", "titles"),
    [
        ("rows", "3d", WARPED),
        ("rows", "2d", WARPED[1:2]),
        ("one_depth", "3d", (f"{BELOW}, both through 3D's depth",)),
        ("rows", "copied", ()),  # nothing is gained for it by showing little
    ],
)
def test_few_compared_pixels_are_no_measure(part, row, titles):
    assert not missed(setting("consistency", part, row, "share", SHARE_LEAST))
    assert missed(setting("consistency", part, row, "share", 0.49)) == dict.fromkeys(titles)


def test_a_bar_just_reached_is_met():
    assert not missed(setting("truth", "rows", "3d", "azimuth_right", 0.8))
    assert not missed(setting("diversity", "rows", "3d", "lpips", 0.1))  # half of 0.2
    assert not missed(setting("relative_image", OWN, "3d", 0.7))


def test_what_cannot_tell_is_not_asked():
    """The copied input beats ours on image and text; a true orbit of another object on the warp: no bar is missed."""
    content = metrics("ab" * 32, 75.0)
    assert content["scorers"][OWN]["rows"]["copied"]["image"] > content["scorers"][OWN]["rows"]["3d"]["image"]
    assert content["consistency"]["rows"]["other"]["ratio"] < content["consistency"]["rows"]["3d"]["ratio"]
    assert not missed(lambda content: None)


def test_every_pair_of_control_and_measure_is_decided_once():
    tells = [(control, key) for control, keys in TELLS.items() for key in keys]
    assert sorted([*tells, *BLIND]) == sorted((control, key) for control in CONTROLS for key in MEASURES)
    assert len(set(tells) | set(BLIND)) == len(tells) + len(BLIND)


def test_the_truth_wins_on_every_measure_that_is_said_to_tell():
    """Otherwise a perfect object would miss the bar."""
    content = metrics("ab" * 32, 75.0)
    measured = from_metrics("ours", content)
    for control, keys in TELLS.items():
        for column in [column for column in measured.columns if column[0] in keys]:
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
        content["relative_image"]["big"] = {"3d": 0.75}

    assert missed(add) == {"3D beats another object: Image score (big)": False}


def test_a_scorer_that_cannot_tell_objects_apart_leaves_its_relative_bar_unmet():
    def add(content):
        content["scorers"]["big"] = copy.deepcopy(content["scorers"][OWN])

    assert missed(add) == {"Relative image score, 3D (big)": None}


@pytest.fixture
def two(tmp_path):
    """Two objects: a mug that clears all, a car without a seed's LPIPS and with a warp above the 2D branch's."""
    car = metrics("ab" * 32, 75.0, "car")
    car["consistency"]["rows"]["3d"]["ratio"] = 0.625
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
    assert r"| Warp / still: 3D below 2D, each its own depth | 0.25 (\< 0.50) | yes | 0.62 (\< 0.50) | **no** |" in text
    assert "| 0.120 (≥ 0.100) | yes | — (≥ —) | **not measured** |" in text
    assert "CAD, mug: 21 of 21 bars met.\n" in text
    assert "CAD, car: 19 of 21 bars met; missed: " in text
    assert "- Reference copied: Image score (100 by construction)" in text
    assert from_csv(tmp_path / "bars.csv") == judged


def test_variants_of_one_object_go_by_their_names(two, tmp_path):
    rows = {"CAD": two["CAD, mug"], "without ADA": two["CAD, mug"]}
    write_bars(rows, tmp_path)
    assert (tmp_path / "bars.md").read_text().startswith("| Bar | CAD | met | without ADA | met |")


def test_the_terminal_shows_what_is_missed(two, tmp_path):
    text = io.StringIO()
    show_bars(write_bars(two, tmp_path), Console(file=text, width=140))
    for said in ("mug", "95.0% (≥ 80.0%)", "not measured", "CAD, car: 19 of 21 bars met", "100 by construction"):
        assert said in text.getvalue()


def test_a_missing_or_foreign_csv_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"bars.csv: missing; run `cad report all`"):
        from_csv(tmp_path / "bars.csv")
    (tmp_path / "bars.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"bars\.csv"):
        from_csv(tmp_path / "bars.csv")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (",0.95,", ",good,"),
        (",0.95,", ",nan,"),
        (",yes", ",no"),
        (",azimuth,", ",compass,"),
        (",>=,", ",=>,"),
        (",0.95,", ",0.95,0.95,"),
        (",yes\n", "\n"),
        ("name,", "label,"),
    ],
)
def test_an_edited_csv_is_a_user_error(two, tmp_path, old, new):
    write_bars(two, tmp_path)
    path = tmp_path / "bars.csv"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=r"bars\.csv: was edited, .*; run `cad report all` again"):
        from_csv(path)


def test_bytes_that_are_no_text_are_a_user_error(tmp_path):
    (tmp_path / "bars.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bars\.csv: was edited"):
        from_csv(tmp_path / "bars.csv")


def test_a_bar_without_a_number_says_a_dash():
    assert Bar("x", "image", None, ">=", 0.5).said == "— (≥ 0.50)"
    assert Bar("x", "image", None, ">=", 0.5).met is None
