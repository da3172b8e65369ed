import io
import json
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from cad.errors import UserError
from cad.report import paper
from cad.report.markup import latex_escape
from cad.report.table1 import Cell, Line, build_table, from_csv, mean_lines, ranked
from cad.report.table1_forms import show_table1, write_table1
from tests.report.conftest import OWN, metrics

L14, B32 = "ViT-L/14 (OpenAI)", "ViT-B/32 (OpenAI)"


def lines(table, source):
    return {line.label: line for line in table.lines if line.source == source}


def test_the_papers_numbers_and_ranks(metrics_file):
    """Table 1 as printed: CAD leads three columns, Magic123 the last."""
    rows = lines(build_table({"ours": metrics_file}), "paper")
    assert list(rows) == [f"{name} (paper)" for name in paper.TABLE1]
    cad, magic = rows["CAD (paper)"], rows["Magic123 (paper)"]
    assert [cad.cells[p].value for p in [(L14, "image"), (B32, "image"), (L14, "text"), (B32, "text")]] == [
        82.56, 89.16, 25.32, 29.81,
    ]  # fmt: skip
    assert [cad.cells[p].rank for p in [(L14, "image"), (B32, "image"), (L14, "text"), (B32, "text")]] == [1, 1, 1, 2]
    assert [magic.cells[p].rank for p in [(L14, "image"), (B32, "image"), (L14, "text"), (B32, "text")]] == [2, 2, 4, 1]


def test_columns_are_never_mixed(metrics_file):
    table = build_table({"ours": metrics_file})
    assert list(table.scorers) == [L14, B32, OWN]
    for line in table.lines:
        columns = {scorer for scorer, _ in line.cells}
        assert columns == ({L14, B32} if line.source == "paper" else {OWN})


def test_our_ranks_count_ours_and_the_controls(metrics_file):
    """Images: copied 100, truth 92, 2D 78, 3D 75, other 60, untrained 41.5."""
    table = build_table({"ours": metrics_file})
    rank = {line.label: line.cells[OWN, "image"].rank for line in table.lines if line.source != "paper"}
    assert rank == {
        "ours": 4, "ours, 2D branch": 3, "True object": 2, "Reference copied†": 1, "Another object": 5,
        "Untrained generator": 6,
    }  # fmt: skip


def test_equal_scores_share_a_rank():
    made = ranked([Line(str(v), "ours", "mug", {("s", "image"): Cell(v, None, None)}) for v in (3.0, 5.0, 4.999, 1.0)])
    assert [line.cells["s", "image"].rank for line in made] == [3, 1, 1, 4]


def test_objects_are_ranked_apart():
    made = ranked([Line(o, "ours", o, {("s", "image"): Cell(v, None, None)}) for o, v in (("mug", 1.0), ("car", 2.0))])
    assert [line.cells["s", "image"].rank for line in made] == [None, None]  # nothing to compare with


def test_the_papers_scorer_shares_its_column(tmp_path):
    """Only where kind, name and weights say so; the digest of what ran is not the paper's to give."""
    content = metrics("cd" * 32, 70.0)
    content["scorers"] = {"big": {**content["scorers"][OWN], "kind": "open_clip"}}
    profile = yaml.safe_load((Path(__file__).parents[2] / "experiments/profile/paper.yaml").read_text())
    own = profile["evaluate"]["scorers"]["CLIP ViT-L/14"]["model"]  # at a commit
    for model, pretrained, columns in (
        (own, None, [L14, B32]),
        ("ViT-L-14-quickgelu", "openai", [L14, B32]),
        ("ViT-L-14-quickgelu", "laion2b", [L14, B32, "big"]),
    ):
        content["scorers"]["big"] |= {"model": model, "pretrained": pretrained}
        (tmp_path / "metrics.json").write_text(json.dumps(content))
        assert list(build_table({"ours": tmp_path / "metrics.json"}).scorers) == columns


def test_one_name_for_two_sets_of_weights_gives_two_columns(tmp_path):
    for name, digest in (("a", "ab" * 32), ("b", "cd" * 32)):
        (tmp_path / name).write_text(json.dumps(metrics(digest, 70.0)))
    table = build_table({"a": tmp_path / "a", "b": tmp_path / "b"})
    assert list(table.scorers) == [L14, B32, OWN, f"{OWN} [cdcdcdcd]"]
    # controls stand once per object, with both scorers' numbers
    assert len(lines(table, "control")["Another object"].cells) == 4


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_controls_of_two_evaluations_that_differ_are_both_shown(tmp_path, order):
    """The untrained generator of another architecture is another one; what is equal stands once."""
    contents = {name: metrics("ab" * 32, 70.0) for name in order}
    contents["b"]["scorers"][OWN]["rows"]["untrained"]["image"] = 30.0
    for name, content in contents.items():
        (tmp_path / name).write_text(json.dumps(content))
    rows = lines(build_table({name: tmp_path / name for name in order}), "control")
    assert list(rows) == [
        "Reference copied†", "Another object", "Untrained generator", f"Untrained generator (beside {order[1]})",
    ]  # fmt: skip
    image = {"a": 41.5, "b": 30.0}
    assert rows["Untrained generator"].cells[OWN, "image"].value == image[order[0]]
    assert rows[f"Untrained generator (beside {order[1]})"].cells[OWN, "image"].value == image[order[1]]


def test_a_difference_that_is_not_shown_makes_no_second_row(tmp_path):
    for name, image in (("a", 41.5), ("b", 41.5004)):
        content = metrics("ab" * 32, 70.0)
        content["scorers"][OWN]["rows"]["untrained"]["image"] = image
        (tmp_path / name).write_text(json.dumps(content))
    assert len(lines(build_table({name: tmp_path / name for name in "ab"}), "control")) == 3


def test_files_have_the_same_bytes_and_read_back(metrics_file, tmp_path):
    for out in ("first", "second"):
        table = write_table1({"ours & co": metrics_file}, tmp_path / out)
    for name in ("table1.md", "table1.csv", "table1.tex"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert from_csv(tmp_path / "first/table1.csv") == table


def test_markdown(metrics_file, tmp_path):
    write_table1({"CAD (mini)": metrics_file}, tmp_path)
    text = (tmp_path / "table1.md").read_text()
    assert "| CAD (paper) | **82.56**¹ | **89.16**¹ | — | **25.32**¹ | 29.81² | — |" in text
    assert "| CAD (mini) | — | — | 75.00 ± 0.42 | — | — | 24.50 ± 0.10 |" in text
    assert "| Reference copied† | — | — | **100.00**¹ |" in text
    assert "100 by construction" in text
    assert "toyworld CLIP: not the paper's scorer" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {8}


def test_latex_is_escaped_and_balanced(metrics_file, tmp_path):
    write_table1({"50% & more_of #1": metrics_file}, tmp_path)
    text = (tmp_path / "table1.tex").read_text()
    assert r"50\% \& more\_of \#1 & --- & --- & 75.00 $\pm$ 0.42 & ---" in text
    assert r"\textbf{82.56}\textsuperscript{1}" in text
    assert text.isascii()
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {6}
    for command in ("toprule", "midrule", "bottomrule"):
        assert f"\\{command}" in text
    assert len(re.findall(r"(?<!\\)\{", text)) == len(re.findall(r"(?<!\\)\}", text))


def test_latex_escapes():
    assert latex_escape(r"a\b~c^d{e}$") == r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d\{e\}\$"


def test_the_terminal_shows_all(metrics_file):
    text = io.StringIO()
    show_table1(build_table({"[red]ours[/red]": metrics_file}), Console(file=text, width=140))
    for said in ("82.56", "75.00 ± 0.42", "[red]ours[/red]", "—", "by construction"):
        assert said in text.getvalue()


def test_a_missing_metrics_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"nowhere/metrics.json: missing"):
        write_table1({"ours": tmp_path / "nowhere/metrics.json"}, tmp_path / "reports")
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("scorers", [{"s": {}}, {"s": []}, []])
def test_a_foreign_metrics_file_is_a_user_error(tmp_path, scorers):
    (tmp_path / "metrics.json").write_text(json.dumps({"scorers": scorers, "object": "mug"}))
    with pytest.raises(UserError, match=r"metrics.json: .*cad evaluate"):
        build_table({"ours": tmp_path / "metrics.json"})


def test_a_missing_or_foreign_csv_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="missing"):
        from_csv(tmp_path / "table1.csv")
    (tmp_path / "table1.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"table1\.csv"):
        from_csv(tmp_path / "table1.csv")


@pytest.mark.parametrize(
    ("old", "new"), [(",75.0,", ",much,"), (",75.0,", ",nan,"), (",ours,", ",mine,"), ("\nours", "\nours,")]
)
def test_an_edited_csv_is_a_user_error(metrics_file, tmp_path, old, new):
    write_table1({"ours": metrics_file}, tmp_path)
    path = tmp_path / "table1.csv"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=r"table1\.csv: was edited, .*; run `cad report all` again"):
        from_csv(path)


@pytest.fixture
def two(tmp_path):
    """Metrics files of one method on two objects, image scores 70 and 80, and of a variant on one of them."""
    rows = {}
    for name, image, subject in (("CAD, mug", 70.0, "mug"), ("CAD, car", 80.0, "car"), ("without ADA", 60.0, "car")):
        rows[name] = tmp_path / f"{name}.json"
        rows[name].write_text(json.dumps(metrics("ab" * 32, image, subject)))
    return rows


def test_means_over_objects_stand_first_each_object_counting_once(two):
    table = build_table(two)
    assert [line.label for line in table.lines if line.source != "paper"] == [
        "CAD, mean of 2", "CAD, 2D branch, mean of 2", "True object, mean of 2",
        "Reference copied†, mean of 2", "Another object, mean of 2", "Untrained generator, mean of 2",
        "CAD, mug", "CAD, mug, 2D branch", "True object for mug", "Reference copied† for mug",
        "Another object for mug", "Untrained generator for mug",
        "CAD, car", "CAD, car, 2D branch", "without ADA", "without ADA, 2D branch", "True object for car",
        "Reference copied† for car", "Another object for car", "Untrained generator for car",
    ]  # fmt: skip
    cell = lines(table, "ours")["CAD, mean of 2"].cells[OWN, "image"]
    assert cell.value == 75.0
    assert cell.std == pytest.approx(50**0.5)  # of 70 and 80: sqrt((25 + 25) / (2 - 1)); the seeds' 0.42 does not enter
    assert cell.rank == 4  # among the means: copied 100, truth 92, 2D branch 78
    copied = lines(table, "control")["Reference copied†, mean of 2"].cells[OWN, "image"]
    assert (copied.value, copied.std, copied.rank) == (100.0, 0.0, 1)


def test_a_variant_of_one_object_has_no_mean_and_takes_part_in_the_ranks_of_its_object(two):
    rows = lines(build_table(two), "ours")
    assert not any(label.startswith("without ADA") and "mean" in label for label in rows)
    assert rows["CAD, car"].cells[OWN, "image"].rank == 4
    assert rows["without ADA"].cells[OWN, "image"].rank == 6  # below its 2D branch's 63, beside another object's 60


def test_a_mean_needs_every_object_under_the_same_scorer(two, tmp_path):
    content = metrics("cd" * 32, 80.0, "car")  # other weights under the same name: another scorer
    del content["scorers"][OWN]["rows"]["other"]
    two["CAD, car"].write_text(json.dumps(content))
    two.pop("without ADA")
    table = build_table(two)
    assert not any(line.object.startswith("mean of") for line in table.lines)
    assert "± in these rows" not in "".join(open_md(two, tmp_path))


def open_md(rows, folder):
    write_table1(rows, folder)
    return (folder / "table1.md").read_text()


def test_the_spread_of_the_means_is_said_exactly(two, tmp_path):
    text = open_md(two, tmp_path)
    assert "| CAD, mean of 2 | — | — | 75.00 ± 7.07 |" in text
    assert "mean over the objects mug and car, each of which counts once" in text
    assert "standard deviation (n - 1) of those 2 means, not of seeds" in text
    assert from_csv(tmp_path / "table1.csv") == build_table(two)
    latex = (tmp_path / "table1.tex").read_text()
    assert latex.isascii()
    assert latex.count(r"\midrule") == 7  # paper; then ours and what stands beside: of the means, the mug, the car


def test_mean_lines_leave_out_what_is_not_measured_everywhere():
    cells = {("s", "image"): Cell(1.0, None, None), ("s", "text"): Cell(2.0, None, None)}
    one, other = Line("a", "ours", "a", cells), Line("b", "ours", "b", {("s", "image"): Cell(4.0, 0.1, None)})
    (mean,) = mean_lines({("CAD", "3d"): {"a": one, "b": other}, ("CAD", "2d"): {"a": one}}, ["a", "b"])
    assert set(mean.cells) == {("s", "image")}
    assert mean.cells["s", "image"].value == 2.5
