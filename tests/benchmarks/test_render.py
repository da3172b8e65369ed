"""The renderer's benchmark: real rows at tiny shapes, ratios and bars from the rows, other devices' sections."""

import argparse
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import render
import render_cases as cases
import render_inference
import render_profile
import torch
from render_cases import COMPILED, FRAME, FUSED, IMAGES, REFERENCE, TEXELS, TRAINING, Case, Shape

from cad.render.build import library

ROOT = Path(__file__).parents[2]
TINY = Shape(2, 6, 4, 8, 8, 8, 5)
compiled = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")


def namespace(**changes: Any) -> argparse.Namespace:
    given = {"device": "cpu", "threads": [1, 2], "repeats": 1, "clock": "wall", "write": True}
    return argparse.Namespace(**given | changes)


def row(renderer: str, seconds: float, memory: float, **changes: Any) -> dict[str, Any]:
    place = {"shape": TRAINING, "threads": 2, "backward": False, "dtype": "float32"}
    return place | {"renderer": renderer, "seconds": seconds, "memory": memory} | changes


@compiled
def test_every_renderer_is_measured_in_processes_of_its_own(monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setitem(render.SHAPES, FRAME, TINY._replace(batch=1))
    monkeypatch.setitem(render.ROWS, "cpu", (TEXELS, FUSED))
    rows = render.measured([FRAME], namespace(threads=[1]), render.in_child)
    assert [(x["backward"], x["renderer"]) for x in rows] == [(False, TEXELS), (False, FUSED)]
    assert all(0 < x["seconds"] < 60 and 0 <= x["memory"] < 1000 for x in rows)


def test_memory_is_measured_once_and_time_for_each_number_of_threads_and_pass() -> None:
    asked = []

    def run(task: str, case: Case, threads: int, cache: str, **options: Any) -> dict[str, Any]:
        asked.append((task, case.backward, threads))
        names = options.get("renderers", ())
        return {name: {"seconds": 1.0} for name in names} if task == "times" else {"memory": 2.0}

    rows = render.measured([TRAINING], namespace(), run)
    assert [x for x in asked if x[0] == "times"] == [("times", b, n) for b in (False, True) for n in (1, 2)]
    assert len([x for x in asked if x[0] == "memory"]) == 2 * len(render.ROWS["cpu"])
    assert len(rows) == 4 * len(render.ROWS["cpu"])
    assert all(x["memory"] == 2.0 for x in rows)


@compiled
@pytest.mark.parametrize("backward", [False, True])
def test_all_renderers_render_the_same_case(backward: bool) -> None:
    case = Case(TINY, backward, "cpu", "float32")
    images = {name: cases.step(case, name)() for name in (REFERENCE, TEXELS, IMAGES, FUSED)}
    for image in images.values():
        assert not image.requires_grad
        torch.testing.assert_close(image, images[REFERENCE], rtol=0, atol=1e-4)
    assert images[REFERENCE].std() > 1e-3


def test_what_cannot_be_compiled_is_a_row_in_words_and_a_bug_of_ours_is_none(monkeypatch) -> None:
    def broken() -> Any:
        raise RuntimeError("\nno compiler | at all\nmore")

    case = Case(TINY, False, "cpu", "float32")
    monkeypatch.setitem(cases.RENDERERS, COMPILED, broken)
    found = cases.times(case, [REFERENCE, COMPILED], 1, "wall")
    assert found[COMPILED] == {"fault": "RuntimeError: no compiler / at all"}
    assert found[REFERENCE]["seconds"] > 0
    place = {"shape": TRAINING, "threads": 1, "backward": False, "dtype": "float32", "renderer": COMPILED}
    text = render.line(place | found[COMPILED], [])
    assert "not measured: RuntimeError: no compiler / at all" in text
    assert text.count("|") == render.HEADER.splitlines()[0].count("|") == render.line(row(FUSED, 1, 1), []).count("|")
    monkeypatch.setitem(cases.RENDERERS, FUSED, broken)
    with pytest.raises(RuntimeError, match="no compiler"):
        cases.times(case, [FUSED], 1, "wall")


def test_calls_take_turns_and_the_median_counts(monkeypatch) -> None:
    order: list[str] = []
    taken = iter([5.0, 1.0, 3.0, 2.0, 4.0, 9.0])
    monkeypatch.setattr(cases, "seconds", lambda call, device, clock: (call(), next(taken))[1])
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    assert cases.alternately(calls, 3, "cpu", "wall") == {"a": 4.0, "b": 2.0}
    assert order == list("ababab")


def test_memory_is_the_peak_beyond_what_was_held() -> None:
    held = torch.ones(2**20)  # 4 MiB
    assert 30 < cases.extra_memory(lambda: torch.ones(8 * 2**20).sum(), "cpu") < 60  # 32 MiB
    assert cases.extra_memory(held.sum, "cpu") < 8


def test_ratios_are_those_of_the_row_and_ours() -> None:
    rows = [row(TEXELS, 0.6, 100.0), row(FUSED, 0.1, 8.0), row(FUSED, 0.3, 8.0, threads=1)]
    assert render.line(rows[0], rows).endswith("| 0.60000 | - | 100.0 | 6.0 x | 1/12.5 |")
    assert render.line(rows[1], rows).endswith("| 0.10000 | - | 8.0 | - | - |")
    assert "| forward + backward | 2 |" in render.line(row(TEXELS, 1, 1, backward=True), rows)


def test_bars_compare_with_the_fastest_plain_pytorch_at_two_threads() -> None:
    rows = [
        row(REFERENCE, 2.0, 900.0), row(TEXELS, 0.7, 110.0), row(IMAGES, 0.9, 500.0), row(COMPILED, 0.1, 1.0),
        row(FUSED, 0.1, 5.0), row(TEXELS, 0.1, 1.0, threads=1), row(FUSED, 0.1, 5.0, threads=1),
        row(REFERENCE, 2.0, 900.0, backward=True), row(TEXELS, 2.1, 800.0, backward=True),
        row(FUSED, 0.4, 50.0, backward=True),
    ]  # fmt: skip
    said = render.bars(rows, "cpu")
    assert len(said) == 4
    assert "measured 7.0 x (eager, texels): not reached" in said[0]
    assert "measured 1/22.0 of eager, texels: reached; 1/180.0 of reference, whole batches at one go" in said[1]
    assert "at least 5 x faster than eager; measured 5.0 x (reference): reached" in said[2]
    assert "measured 1/18.0 of reference: not reached" in said[3]
    assert render.bars([], "cpu") == [
        "forward at the training shape, float32, 2 threads: not measured",
        "forward + backward at the training shape, float32, 2 threads: not measured",
    ]


def test_a_gpus_bars_are_its_own() -> None:
    rows = [
        row(IMAGES, 0.05, 1.0), row(FUSED, 0.002, 1.0),
        row(FUSED, 1 / 250, 1.0, shape=FRAME), row(FUSED, 1 / 150, 1.0, shape=FRAME, dtype="float16"),
    ]  # fmt: skip
    said = "\n".join(render.bars(rows, "cuda"))
    assert "forward at the training shape, float32: at least 20 x faster than eager; measured 25.0 x" in said
    assert "frame of 256 px, 96 samples, float32: at least 200 frames/s; measured 250: reached" in said
    assert "frame of 256 px, 96 samples, float16: at least 200 frames/s; measured 150: not reached" in said


def test_sections_of_other_devices_stay() -> None:
    first = render.merged("", "## CPU A\n\nold\n")
    assert "## GPU\n\nNot measured: no GPU." in first
    both = render.merged(first, "## H\n\ntorch; the GPU's events, medians\n")
    assert [x for x in both.splitlines() if x.startswith("## ")] == ["## CPU A", "## H"]
    again = render.merged(both, "## CPU A\n\nnew\n\n### Inference\n\nrows\n")
    assert "old" not in again
    assert "## CPU A\n\nnew\n\n### Inference\n\nrows\n" in again
    assert "## H\n\ntorch; the GPU's events, medians" in again
    assert render.merged(again, "## CPU A\n\nnew\n\n### Inference\n\nrows\n") == again


def test_a_section_names_device_shapes_and_every_row() -> None:
    text = render.section([row(TEXELS, 0.8, 100.0), row(FUSED, 0.1, 5.0)], ["### Inference"], namespace())
    assert text.startswith(f"## {cases.processor()}\n")
    assert f"- {TRAINING}: {cases.SHAPES[TRAINING]._asdict()}" in text
    assert "measured 8.0 x (eager, texels): reached" in text
    table = [x for x in text.splitlines() if x.startswith("|")]
    assert len(table) == 4
    assert len({x.count("|") for x in table}) == 1


@compiled
def test_a_frame_is_the_same_prepared_and_its_grid_knows_the_ball() -> None:
    shape = Shape(1, 24, 12, 8, 32, 8, 3)
    cells, difference = render_inference.frame(shape, 1, "cpu", "processor")
    assert len(cells) == render_inference.HEADER.splitlines()[0].count("|") - 3
    assert difference < 1
    # The ball's part of the box is pi / 6 * 0.6^3; a cell at its surface counts too.
    assert 0.5 * math.pi / 6 * 0.6**3 < float(cells[5].split()[0]) / 100 < 0.4


def test_the_ball_is_dense_inside_and_nothing_outside() -> None:
    from cad.render.reference import field

    planes, decoder = render_inference.textured_ball(Shape(1, 8, 4, 8, 32, 16, 5))
    draws = torch.Generator().manual_seed(1)
    points = torch.rand(1, 5000, 3, generator=draws) * 1.4 - 0.7
    with torch.no_grad():
        density, radiance = field(planes, decoder, points, 0.7)
    radius = points.norm(dim=-1) / 0.7
    assert density[radius < 0.55].min() > 2
    assert density[radius > 0.68].max() < 1e-3
    assert radiance.std() > 0.1


def test_the_profile_lists_what_takes_longest() -> None:
    lines = render_profile.table(Case(TINY, True, "cpu", "float32"), TEXELS)
    spent = [float(x.split("|")[2]) for x in lines[2:-1]]
    assert spent == sorted(spent, reverse=True)
    assert 3 < len(spent) <= 15
    assert sum(spent) <= float(lines[-1].split("|")[2]) * 1.1 + 0.5


def test_the_renderers_functions_are_read_from_perfs_report() -> None:
    report = "# Overhead\n\n 20.00%  libpython.so  [.] gc  -  -\n 15.00%  render-0c.so  [.] cad::f<2>(int, int)  -  -\n"
    report += "  5.00%  render-0c.so  [.] (anonymous namespace)::g  -  -\n"
    assert render_profile.own_functions(report)[2:] == [
        "| `cad::f<2>(int, int)` | 75 % |", "| `(anonymous namespace)::g` | 25 % |",
    ]  # fmt: skip


def test_without_perf_the_page_says_so(monkeypatch) -> None:
    monkeypatch.setattr(render_profile.shutil, "which", lambda name: None)
    assert render_profile.functions(False, 1) == ["Not measured: perf is not installed."]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_gpus_run_says_so_and_writes_nothing(monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    before = render.TABLE.exists() and render.TABLE.read_text()
    command = [sys.executable, render.__file__, "--device", "cuda"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "not measured: no GPU" in ended.stderr
    assert (render.TABLE.exists() and render.TABLE.read_text()) == before


def test_a_failing_child_is_an_error_that_shows_its_words(monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with pytest.raises(RuntimeError, match=re.escape("KeyError: 'no such renderer'")):
        render.in_child("memory", Case(TINY, False, "cpu", "float32"), 1, "unused", renderer="no such renderer")
    request = json.dumps(["memory", [list(TINY), False, "cpu", "float32"], 1, {"renderer": REFERENCE}])
    assert render.child(request)["memory"] >= 0
