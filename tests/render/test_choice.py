"""Which renderer a process uses, and that work goes on only as it began."""

from pathlib import Path

import pytest
import torch

from cad.errors import UserError
from cad.render.choice import check_begun, rendered_by, renderer, resolve_renderer, use_renderer

CPU = torch.device("cpu")


def test_a_choice_ends_with_its_context_even_by_an_error():
    assert renderer() == "reference"
    with pytest.raises(KeyboardInterrupt), use_renderer("fused"):  # noqa: PT012
        with use_renderer("reference"):
            assert renderer() == "reference"
        assert rendered_by(CPU) == {"renderer": "fused", "device": "cpu"}
        raise KeyboardInterrupt
    assert renderer() == "reference"


def test_the_reference_is_had_without_a_compiler(monkeypatch):
    monkeypatch.setattr("cad.render.choice.library", lambda: pytest.fail("compiled"))
    assert resolve_renderer("reference", CPU) == "reference"


@pytest.mark.parametrize(
    ("recorded", "said"),
    [
        ({"renderer": "fused", "device": "cpu"}, "renderer fused, but renderer is reference now"),
        ({"renderer": "reference", "device": "cuda"}, "device cuda, but device is cpu now"),
        ({}, "renderer an unknown one"),
    ],
)
def test_work_of_another_renderer_or_device_is_refused(recorded, said):
    with pytest.raises(UserError, match=f"^.work/0: was begun with .*{said}.* or remove .work/0$"):
        check_begun(Path(".work/0"), recorded, CPU)
    check_begun(Path(".work/0"), {"renderer": "reference", "device": "cpu", "step": 3}, CPU)
