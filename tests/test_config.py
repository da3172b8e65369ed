"""Settings: what is refused and how it is said; the profiles; overrides and ancestors of entries."""

import copy
import re
import subprocess
import sys
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cad.config import Params, load
from cad.config.sections import Family
from cad.errors import UserError
from cad.stages import models_read

ROOT = Path(__file__).parents[1]


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(ROOT / "experiments"), version_base=None):
        return OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)


MINI = composed()


def changed(tmp_path: Path, path: str, value: Any) -> Path:
    """A settings file: mini with the value at a dotted path replaced (None removes the key)."""
    values = copy.deepcopy(MINI)
    *parents, key = path.split(".")
    owner = values
    for parent in parents:
        owner = owner[parent]
    if value is None:
        del owner[key]
    else:
        owner[key] = value
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_params_yaml_is_the_composition_of_mini() -> None:
    assert (ROOT / "params.yaml").read_text() == OmegaConf.to_yaml(OmegaConf.create(MINI))


@pytest.mark.parametrize("profile", ["mini", "smoke", "paper", "single-gpu"])
@pytest.mark.parametrize("objects", ["[robot]", "[robot,car]"])
def test_every_profile_is_sound_with_every_object(tmp_path: Path, profile: str, objects: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(composed(f"profile={profile}", f"object={objects}")))
    params = load(file)
    assert params.profile == profile
    assert all(params.object_of("evaluate", entry) == entry for entry in params.report.rows.values())


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_mini_and_paper_are_complete_by_themselves(profile: str) -> None:
    written = yaml.safe_load((ROOT / f"experiments/profile/{profile}.yaml").read_text())
    tables = {"objects", "report"} | {name for name in Params.model_fields if name.endswith("s") and name != "models"}
    for name, field in Params.model_fields.items():
        if name in tables:
            continue
        keys = getattr(field.annotation, "model_fields", None)
        assert name in written, name
        if keys is not None:
            assert set(written[name]) == set(keys), name


def test_paper_states_the_papers_own_numbers() -> None:
    paper = composed("profile=paper")
    assert (paper["camera"]["fov_deg"], paper["camera"]["radius"], paper["camera"]["half_side"]) == (49.1, 2.0, 0.7)
    assert paper["prior"]["poses"] == 10_000
    generator = paper["generator"]
    sides = ("plane_resolution", "raw_resolution", "output_resolution")
    assert [generator[side] for side in sides] == [128, 64, 256]
    assert paper["stage1"]["r1_gamma"] == paper["stage2"]["r1_gamma"] == paper["stage2"]["patch_r1_gamma"] == 3.0
    assert (paper["stage2"]["patch_size"], paper["stage2"]["plane_upsampling"]) == (64, 2)
    assert paper["orbit"]["frames"] == 120


SOURCE = re.compile(r"Sec\.|App\.|Eq\.|paper|EG3D|StyleGAN2|Mimic3D|Zero-1-to-3|diffusers|\[ours")


def test_every_setting_says_what_it_is_and_where_from_and_has_no_default() -> None:
    waiting = [(name, section.annotation) for name, section in Params.model_fields.items()]
    for name, annotation in waiting:
        for key, field in getattr(annotation, "model_fields", {}).items():
            assert SOURCE.search(field.description or ""), f"{name}.{key}: {field.description}"
            assert field.is_required(), f"{name}.{key}"
            either = get_args(field.annotation) if isinstance(field.annotation, UnionType) else (field.annotation,)
            waiting += [(f"{name}.{key}", each) for each in either]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("prior.stepps", 3, "prior.stepps: unknown key; did you mean steps?"),
        ("colour", 3, "colour: unknown key"),
        ("prior.steps", "many", "prior.steps: input should be a valid integer, not 'many'"),
        ("prior.steps", 3.0, "prior.steps: input should be a valid integer"),
        ("prune.enabled", 1, "prune.enabled: input should be a valid boolean"),
        ("prior.steps", 0, "prior.steps: input should be greater than or equal to 1, not 0"),
        ("stage1.beta2", 1.0, "stage1.beta2: input should be less than 1"),
        ("stage1.kimg", float("inf"), "stage1.kimg: input should be a finite number"),
        ("refine.kind", "magic", "refine.kind: input should be 'latent-diffusion'"),
        ("refine.kind", "deepfloyd-if", "refine: kind is deepfloyd-if, but deepfloyd_if is null; correct one of them"),
        ("refine.precision", "float16", "refine: bf16 is for float32 weights, precision is float16: set bf16 to false"),
        (
            "refine.latent_diffusion.strenght",
            1,
            "refine.latent_diffusion.strenght: unknown key; did you mean strength?",
        ),
        (
            "refines.robot-much",
            {"prune": "robot", "latent_diffusion": {"strength": 2.0}},
            "refines.robot-much.latent_diffusion.strength: input should be less than or equal to 1, not 2.0; it is",
        ),
        (
            "refines.robot-pixels",
            {
                "prune": "robot",
                "kind": "deepfloyd-if",
                "deepfloyd_if": {
                    "stage1": {"strength": 0.3, "guidance": 10.0, "steps": 80},
                    "stage2": {"strength": 0.7, "guidance": 4.0, "steps": 50, "noise_level": 250},
                },
            },
            "models.deepfloyd_stage1: is null, but refines.robot-pixels refines by deepfloyd-if; name a local folder",
        ),
        ("prior.eta", None, "prior.eta: is missing"),
        ("objects.robot.reference_polar_deg", 190, "objects.robot.reference_polar_deg: input should be less than 180"),
        ("objects.robot.toyworld.sead", 1, "objects.robot.toyworld.sead: unknown key"),
        ("objects.robot.toyworld.family", "rocket", "objects.robot.toyworld.family: input should be 'robot', 'car'"),
        ("camera.half_side", 1.5, "camera: the camera stands inside the volume box"),
        ("generator.plane_resolution", 33, "generator: plane_resolution must be a power of two, not 33"),
        ("generator.output_resolution", 128, "generator.output_resolution: is 128, but the samples of stage1s."),
        ("stage1.batch", 6, "stage1.batch: 6 does not divide into groups of discriminator.mbstd_group = 4"),
        ("stage2.batch", 6, "stage2.batch: 6 does not divide into groups of discriminator.mbstd_group = 4"),
        ("stage2s.robot", {"stage1": "robot", "patch_size": 48}, "stage2.patch_size: 48 px is no power of two"),
        ("stage1.precision", "float16", "stage1: float16 overflows without generator.activation_clamp"),
        ("stage2.plane_precision", "float16", "stage2: float16 overflows without generator.activation_clamp"),
        ("stage2.patch_size", 128, "stage2.patch_size: 128 px is no power of two up to generator."),
        ("priors.robot.input", "robbot", "priors.robot.input: there is no input 'robbot'; did you mean robot?"),
        ("priors.robot-few", {"input": "robot", "steps": 0}, "priors.robot-few.steps: input should be greater"),
        ("priors.robot-few", {"input": "robot", "poze": 1}, "priors.robot-few.poze: unknown key; did you mean poses?"),
        ("priors.few", {"input": "robot"}, "priors.few: is about the object robot; rename it"),
        (
            "stage1s.robot",
            {"refine": "robot", "generator": {"z_dim": 0}},
            "stage1s.robot.generator.z_dim: input should",
        ),
        ("report.rows", {"ours": "boat"}, "report.rows.ours: there is no evaluation 'boat'"),
    ],
)
def test_faults_are_one_line_with_the_full_path(tmp_path: Path, path: str, value: Any, said: str) -> None:
    file = changed(tmp_path, path, value)
    with pytest.raises(UserError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: {said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no mapping"),
        ("- 1", "holds no mapping"),
        ("seed: [", "is no valid YAML"),
        ("seed: 1\nseed: 2", "is no valid YAML"),
        ("\x00", "is no valid YAML"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        load(file)
    assert str(caught.value).startswith(str(file))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"params\.yaml: does not exist"):
        load(tmp_path / "params.yaml")


def test_the_families_are_those_of_the_toyworld_and_are_checked_without_it() -> None:
    from cad.toyworld.families import FAMILIES

    assert list(get_args(Family)) == list(FAMILIES)
    code = "import sys, cad.config; sys.exit(bool({'torch', 'numba', 'numpy', 'cad.toyworld'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_scientific_notation_is_a_number_as_in_dvc(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    written = f"lr_generator: {MINI['stage1']['lr_generator']}"
    file.write_text(yaml.safe_dump(MINI).replace(written, "lr_generator: 1.5e-3"))
    assert load(file).stage1.lr_generator == 0.0015


def test_an_entry_overrides_its_section_alone(tmp_path: Path) -> None:
    params = load(changed(tmp_path, "priors.robot-few", {"input": "robot", "samples": 1}))
    few, upstream = params.resolve("prior", "robot-few")
    assert (few.samples, few.poses, upstream) == (1, MINI["prior"]["poses"], "robot")
    assert params.resolve("prior", "robot")[0] == params.prior


def test_an_entry_overrides_one_key_of_a_section_within_its_own(tmp_path: Path) -> None:
    entry = {"prune": "robot", "latent_diffusion": {"strength": 0.4}}
    params = load(changed(tmp_path, "refines.robot-faithful", entry))
    walk = params.resolve("refine", "robot-faithful")[0].latent_diffusion
    assert walk == params.refine.latent_diffusion.model_copy(update={"strength": 0.4})
    assert params.resolve("refine", "robot")[0] == params.refine


def test_paper_s_entries_choose_their_refiner(tmp_path: Path) -> None:
    """As in App. C: ControlNet for some objects, DeepFloyd for others, each with the profile's numbers for it."""
    values = composed("profile=paper", "object=[robot,car]")
    values["refines"]["car"]["kind"] = "deepfloyd-if"
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(values))
    params = load(file)
    assert [params.resolve("refine", name)[0].kind for name in ("robot", "car")] == ["controlnet-depth", "deepfloyd-if"]
    named = values["models"]
    assert models_read("refine", "robot", params) == [named[key] for key in ("refiner", "controlnet", "depth")]
    assert models_read("refine", "car", params) == [named[f"deepfloyd_stage{stage}"] for stage in (1, 2)]
    walks = params.resolve("refine", "car")[0].deepfloyd_if
    assert (walks.stage1.strength, walks.stage2.strength) == (0.3, 0.7)


def test_a_stage1_entry_overrides_its_networks(tmp_path: Path) -> None:
    entry = {"refine": "robot", "kimg": 1.0, "discriminator": {"pose_noise": 0.5}}
    params = load(changed(tmp_path, "stage1s.robot-noisy", entry))
    assert params.resolve("discriminator", "robot-noisy")[0].pose_noise == 0.5
    assert params.resolve("generator", "robot-noisy")[0] == params.generator
    assert params.resolve("stage1", "robot-noisy")[0].kimg == 1.0


def test_ancestors_follow_the_tables_up(tmp_path: Path) -> None:
    params = load(changed(tmp_path, "prunes.robot-strict", {"prior": "robot", "dilation_px": 0}))
    assert params.ancestors("prune", "robot-strict") == {"prior": "robot", "input": "robot", "object": "robot"}
    assert params.object_of("prune", "robot-strict") == "robot"


def test_an_unknown_entry_is_named() -> None:
    with pytest.raises(UserError, match=r"priors\.robt: there is no entry 'robt'; did you mean robot\?"):
        load(ROOT / "params.yaml").resolve("prior", "robt")
