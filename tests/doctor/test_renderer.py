"""What `cad doctor` says of the fused renderer: not compiled, wrong, or not to be traced."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cad.config import Params
from cad.doctor import machine, renderer, report
from cad.doctor.findings import BROKEN, MISSING, OK
from cad.errors import UserError
from cad.render import build, fused
from tests.doctor.conftest import NEEDS_COMPILER


def test_without_a_compiler_plain_pytorch_renders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    build.library.cache_clear()
    found = machine.cpp_compiler()
    assert (found.state, found.needed) == (MISSING, False)
    assert "install g++" in found.remedy
    (picture,) = renderer.examine_renderer(params)
    build.library.cache_clear()
    forced = params.model_copy(update={"runtime": params.runtime.model_copy(update={"renderer": "fused"})})
    (refused,) = renderer.examine_renderer(forced)
    build.library.cache_clear()
    assert (picture.state, picture.needed, refused.needed) == (MISSING, False, True)
    assert picture.says.startswith("no C++ compiler (g++) is found")
    with pytest.raises(UserError, match=r"renderer, fused on cpu: no C\+\+ compiler .*; install g\+\+"):
        report.refuse([refused])
    report.refuse([picture])


@NEEDS_COMPILER
def test_the_fused_renderer_is_held_to_the_reference(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, graph = renderer.examine_renderer(params)[:2]
    assert (picture.state, graph.state) == (OK, OK)
    assert 0 < renderer.largest_difference(torch.device("cpu")) < 1e-4
    true = fused.render_rays

    def spoilt(factor: float) -> Any:
        def render(*arguments: Any) -> Any:
            found = true(*arguments)
            return found._replace(depth=found.depth * factor)

        return render

    for factor in (1.01, float("nan")):
        monkeypatch.setattr(fused, "render_rays", spoilt(factor))
        found = renderer.examine_renderer(params)[0]
        assert (found.state, found.needed) == (BROKEN, True)
        assert "set runtime.renderer to reference" in found.remedy


@NEEDS_COMPILER
def test_a_renderer_that_cannot_be_traced_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    true = fused.render_rays

    def breaks(*arguments: Any) -> Any:
        torch._dynamo.graph_break()
        return true(*arguments)

    monkeypatch.setattr(fused, "render_rays", breaks)
    found = renderer.traced(torch.device("cpu"))
    assert (found.state, found.needed) == (BROKEN, False)
