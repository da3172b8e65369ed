"""The digest of what a stage computes with, on a package of a few files."""

from pathlib import Path

import pytest

from cad import code


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cad"
    for name, text in {
        "__init__.py": "",
        "errors.py": "from cad import unused",
        "unused.py": "",
        "a/__init__.py": '"""A package."""',
        "a/stage.py": "import torch\nfrom cad.errors import UserError\ndef f():\n    from cad.b.part import g",
        "a/other.py": "",
        "b/__init__.py": "from cad.b import inner",
        "b/inner.py": "",
        "b/part.py": "import cad.a.stage",
        "b/src/sum.cpp": "",
        "b/src/notes.txt": "",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(code, "PACKAGE", root)
    return root


def test_files_are_imports_and_theirs_without_carriers(package: Path) -> None:
    found = {path.relative_to(package).as_posix() for path in code.code_files("cad.a.stage")}
    assert found == {"a/__init__.py", "a/stage.py", "b/__init__.py", "b/inner.py", "b/part.py", "b/src/sum.cpp"}
    assert code.code_files("elsewhere.stage") == []


def test_the_digest_follows_what_is_used_and_nothing_else(package: Path) -> None:
    seen = [code.code_digest("cad.a.stage")]
    for name in ("unused.py", "errors.py", "a/other.py", "b/src/notes.txt"):
        (package / name).write_text("x = 1")
        assert code.code_digest("cad.a.stage") == seen[0], name
    for name in ("b/inner.py", "b/src/sum.cpp"):
        (package / name).write_text("1")
        seen.append(code.code_digest("cad.a.stage"))
    (package / "b/inner.py").rename(package / "b/inmost.py")
    (package / "b/__init__.py").write_text("from cad.b import inmost")
    seen.append(code.code_digest("cad.a.stage"))
    assert len(set(seen)) == len(seen)
