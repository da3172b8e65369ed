from pathlib import Path

import mutations
import pytest

ROOT = Path(__file__).parents[2]


def test_the_faults_are_different_and_those_of_the_renderer_are_planted_in_both() -> None:
    assert len({fault.name for fault in mutations.FAULTS}) == len(mutations.FAULTS) == 16
    assert len({(fault.file, fault.old) for fault in mutations.FAULTS}) == 16
    plain = {fault.name for fault in mutations.FAULTS if fault.file == "cad/render/reference.py"}
    compiled = {fault.name: fault.file for fault in mutations.FAULTS if fault.file.startswith("cad/render/csrc/")}
    assert {name for name in compiled if name.startswith("fused: ")} == {f"fused: {name}" for name in plain}
    others = {Path(file).name for name, file in compiled.items() if not name.startswith("fused: ")}
    assert others == {"backward.cu", "occupancy.cpp", "inference.cpp"}


@pytest.mark.parametrize("fault", mutations.FAULTS, ids=lambda fault: fault.name)
def test_a_fault_still_fits_the_source(fault, tmp_path: Path) -> None:
    source = ROOT / fault.file
    copy = tmp_path / fault.file
    copy.parent.mkdir(parents=True)
    copy.write_text(source.read_text())
    former = mutations.plant(fault, tmp_path)
    assert former == source.read_text()
    assert copy.read_text() != former
    if fault.file.endswith(".py"):
        compile(copy.read_text(), fault.file, "exec")
    assert all((ROOT / path.partition("::")[0]).is_file() for path in fault.tests)


def test_a_text_that_is_gone_or_there_twice_is_refused(tmp_path: Path) -> None:
    for text in ("nothing", "here here"):
        (tmp_path / "file.py").write_text(text)
        with pytest.raises(ValueError, match=r"file\.py: holds 'here' [02] times, not once"):
            mutations.plant(mutations.Fault("any", "file.py", "here", "there", ()), tmp_path)
        assert (tmp_path / "file.py").read_text() == text


def test_the_copy_has_all_that_the_tests_import(tmp_path: Path) -> None:
    mutations.copy(tmp_path)
    found = mutations.call(tmp_path, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", mutations.CAMERA)
    assert found.returncode == 0, found.stderr


def test_the_table_names_survivors() -> None:
    names = [fault.name for fault in mutations.FAULTS]
    caught = dict.fromkeys(names, "tests/x.py::test_y") | {names[3]: None}
    table = mutations.markdown(caught)
    assert "Caught: 15 of 16." in table
    assert table.count("**survives**") == 1
    assert table.count("`tests/x.py::test_y`") == 15


def test_the_committed_table_is_of_these_faults_and_tests() -> None:
    rows = [line.split(" | ") for line in mutations.TABLE.read_text().splitlines() if "`cad/" in line]
    assert [(row[1], row[2].strip("`")) for row in rows] == [(fault.name, fault.file) for fault in mutations.FAULTS]
    for row in rows:
        file, _, name = row[3].strip(" |`").partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text()
