"""Plug-ins, end to end: one file and one entry are enough, what is wrong with them is one line, changes are noticed."""

import itertools
import json
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch

from cad.artifacts import PriorCache
from cad.config import load
from cad.evaluate.scorers import load_scorer, score
from cad.stages import identity

NUMBERS = itertools.count()  # Python keeps modules by name, so each test's has its own

PAGE = (Path(__file__).parents[2] / "docs/extending.md").read_text(encoding="utf-8")
REFINER = "".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))  # the page's own example
VIEWS = """
    class Tilt:
        resolution = 32

        def __init__(self, settings, device):
            self.gain = settings["gain"]

        def condition(self, image, polar):
            return image, polar

        def views(self, condition, relative, streams):
            image, polar = condition
            noise = 0 * streams.draw(tuple(image.shape[1:]))
            return noise + (self.gain * (relative[:, 0] + polar))[:, None, None, None]
"""
SCORER = """
    import torch

    class Brightness:
        weights_digest, preprocessing = "none", "none"

        def __init__(self, name, settings, device):
            self.name, self.words = name, settings["words"]

        def images(self, images):
            light = torch.tensor(images / 255.0).float().mean((1, 2, 3))
            return torch.nn.functional.normalize(torch.stack([light, 1 - light], 1), dim=1)

        def texts(self, texts):
            return torch.tensor([[1.0, 0.0] if self.words in text else [0.0, 1.0] for text in texts])
"""


class Plugin:
    """A module in the project's folder of plug-ins, of a name that no other test's has."""

    def __init__(self, project: Any, text: str):
        self.module = f"own_{next(NUMBERS)}"
        self.file = Path(project / "plugins" / f"{self.module}.py")
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(dedent(text))

    def kind(self, name: str) -> str:
        return f"{self.module}:{name}"


@pytest.fixture
def refining(project: Any) -> Any:
    """A project in which only refining is left to do."""
    project.give_decisions()
    project.change({"refine.enabled": True})
    return project


def test_a_refiner_is_one_file_and_one_entry(refining: Any, cad: Any) -> None:
    kind = Plugin(refining, REFINER).kind("Flatten")
    refining.change({"refines.robot": {"prune": "robot", "kind": kind, "settings": {"level": -0.2}}})
    ended = cad("prior", "refine", "robot")
    assert ended.code == 0, ended.err
    images = PriorCache.open(refining / "runs/robot/refine").load()
    assert np.unique(images).tolist() == [102]  # (-0.2 + 1) / 2 * 255


def test_a_view_model_sees_the_reference_and_the_poses(project: Any, cad: Any) -> None:
    """Each view shows its own polar angle: the reference's 70 degrees and the relative ones."""
    project.give_input()
    project.change({"prior": {"kind": Plugin(project, VIEWS).kind("Tilt"), "settings": {"gain": 0.25}}})
    assert cad("prior", "sample", "robot").code == 0
    cache = PriorCache.open(project / "runs/robot/prior")
    for i, polar in enumerate(cache.poses.polar.tolist()):
        assert np.abs(cache.read(i).astype(float) - (0.25 * polar + 1) / 2 * 255).max() < 1


def test_a_scorer_stands_beside_the_others(project: Any) -> None:
    kind = Plugin(project, SCORER).kind("Brightness")
    project.change({"evaluate.scorers": {"light": {"kind": kind, "settings": {"words": "bright"}}}})
    chosen = load(project / "params.yaml").evaluate.scorers
    assert len(chosen) > 1
    scorer = load_scorer("light", chosen["light"], torch.device("cpu"))
    assert scorer.name == "light"
    white = np.full((1, 4, 4, 3), 255, np.uint8)
    found = score(scorer.images(np.concatenate([white, 0 * white])), scorer.texts(["a bright toy", "a dark toy"]))
    assert found.tolist() == [[100, 0], [0, 100]]


@pytest.mark.parametrize(
    ("text", "name", "settings", "said"),
    [
        (REFINER, "Flaten", {"level": 0.0}, "its module has no class or function Flaten; correct the name"),
        ("class A:\n    def __init__(self, prompts): ...", "A", {}, "does not take (settings, prompts, device): "),
        ("def a(settings, prompts, device): return 3", "a", {}, "has no `refine`, which a Refiner needs; see docs"),
        (
            "class A:\n    def __init__(self, **given): ...\n    def refine(self, images): ...",
            "A",
            {},
            ".refine: does not take (images, prompts, streams): too many positional",
        ),
        (
            "class A:\n    def __init__(self, **given): ...\n    def refine(self, images, *rest): return images[:, :1]",
            "A",
            {},
            "gave images of shape [4, 1, 32, 32], not [4, 3, 32, 32]; correct",
        ),
        (REFINER, "Flatten", {"level": "high"}, "refine.settings.level: input should be a valid number, not 'high'"),
        (REFINER, "Flatten", {"levle": 1.0}, "refine.settings.level: is missing"),
        ("import not_there_at_all", "A", {}, "cannot be imported (ModuleNotFoundError: No module named"),
        ("class A(:", "A", {}, "cannot be imported (SyntaxError: "),
    ],
)
def test_a_wrong_plugin_is_one_line(
    refining: Any, cad: Any, text: str, name: str, settings: dict[str, Any], said: str
) -> None:
    refining.change({"refine": {"kind": Plugin(refining, text).kind(name), "settings": settings, "batch": 4}})
    ended = cad("prior", "refine", "robot")
    assert (ended.code, len(ended.err), ended.out) == (2, 1, [])
    assert said in ended.err[0]
    assert not (refining / "runs/robot/refine").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"refine.kind": "not_there:A"}, "not_there:A: there is no module not_there; put not_there.py into plugins/"),
        ({"refine.kind": "not_there.deep:A"}, "not_there.deep:A: there is no module not_there.deep; put not_there.py"),
        ({"refine.kind": "a:b:c"}, "params.yaml: refine.kind: input should be 'latent-diffusion', 'controlnet-depth'"),
        ({"refine.settings": {"level": 1}}, "params.yaml: refine: settings are for a plug-in, and kind is latent-diff"),
        ({"prior.settings": {"level": 1}}, "params.yaml: prior: settings are for a plug-in, and kind is zero123: set"),
        ({"prior.kind": "zero"}, "params.yaml: prior.kind: input should be 'zero123' or a plug-in's module:Name, not"),
        (
            {"evaluate.scorers": {"a": {"kind": "m:A"}}},
            "params.yaml: evaluate.scorers.a.settings: is missing; write a value",
        ),
    ],
)
def test_a_wrong_entry_is_one_line(refining: Any, cad: Any, changes: dict[str, Any], said: str) -> None:
    refining.change(changes)
    ended = cad("prior", "refine", "robot")
    assert (ended.code, len(ended.err), ended.out) == (2, 1, [])
    assert ended.err[0].startswith(f"error: {said}")


def test_a_stage_is_another_when_its_plugin_is(refining: Any, cad: Any) -> None:
    """Its code, a module that it imports, a file that its settings name; each entry by itself, and for DVC too."""
    helper = Plugin(refining, "LEVEL = 0.0")
    plugin = Plugin(refining, f"import {helper.module}\n" + dedent(REFINER))
    weights = refining / "weights.txt"
    weights.write_text("1")
    own = {"level": 0.0, "deep": ["weights.txt"]}
    refining.change({"refines.robot-own": {"prune": "robot", "kind": plugin.kind("Flatten"), "settings": own}})

    def known() -> tuple[str, str | None, str | None]:
        assert cad("plugins").code == 0
        entries = json.loads((refining / "plugins.json").read_text())["refine"]
        stage = identity("refine", "robot-own", load(refining / "params.yaml"))
        return json.dumps(stage["plugins"]), entries["robot-own"], entries["robot"]

    seen = [known()]
    assert known() == seen[0], "nothing has changed"
    for path in (plugin.file, helper.file, weights):
        path.write_text(path.read_text() + "\n# another\n")
        seen.append(known())
    assert len({stage for stage, _, _ in seen}) == len({entry for _, entry, _ in seen}) == 4
    assert {other for _, _, other in seen} == {None}
    plugin.file.unlink()
    ended = cad("plugins")
    assert (ended.code, len(ended.err)) == (2, 1)
    assert f"there is no module {plugin.module}" in ended.err[0]


def test_a_module_on_the_path_and_one_in_a_package_are_found(
    refining: Any, cad: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = f"own_{next(NUMBERS)}"
    folder = tmp_path / "elsewhere" / package
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "flat.py").write_text(dedent(REFINER))
    monkeypatch.syspath_prepend(str(folder.parent))
    refining.change({"refine": {"kind": f"{package}.flat:Flatten", "settings": {"level": 1.0}}})
    assert cad("prior", "refine", "robot").code == 0
    assert np.unique(PriorCache.open(refining / "runs/robot/refine").load()).tolist() == [255]


def test_a_module_by_the_name_of_another_is_refused(refining: Any, cad: Any) -> None:
    folder = refining / "plugins"
    folder.mkdir()
    (folder / "json.py").write_text(dedent(REFINER))
    refining.change({"refine": {"kind": "json:Flatten", "settings": {"level": 1.0}}})
    ended = cad("prior", "refine", "robot")
    assert ended.code == 2
    assert "has the same name; give the module another one" in ended.err[0]
