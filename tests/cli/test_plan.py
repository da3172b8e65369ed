import shutil
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[2]


def test_a_profiles_plan_is_shown(cad, monkeypatch):
    monkeypatch.chdir(ROOT)
    ended = cad("plan", "robot", "--profile", "mini", "--object", "robot", "--rate", "zero123=100")
    assert ended.code == 0
    assert "zero123: 100.0 per second, given" in ended.out


def test_a_full_disk_is_one_line_and_code_2(cad, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1_000_000))
    ended = cad("plan", "--profile", "mini")
    assert (ended.code, len(ended.err)) == (2, 1)
    assert "the run needs" in ended.err[0]
    assert "1 MB are free" in ended.err[0]


def test_objects_are_for_a_composed_profile(cad):
    ended = cad("plan", "--object", "robot")
    assert (ended.code, len(ended.err)) == (2, 1)
    assert ended.err[0].startswith("error: --object: is for a profile")


def test_bad_rates_are_one_line(cad, monkeypatch):
    monkeypatch.chdir(ROOT)
    ended = cad("plan", "--profile", "mini", "--rate", "zero=4")
    assert (ended.code, len(ended.err)) == (2, 1)
    assert "known: zero123" in ended.err[0]
