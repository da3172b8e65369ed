"""The whole DAG of the profile `paper`, at reduced counts, with random-weight stand-ins of every published model.

Two inputs come from folders in Synthetic-NeRF's and NSVF's layouts; one object is refined under a ControlNet, the other
by DeepFloyd IF; an open_clip model and a plug-in score them. What differs from `paper` is written below: counts, sizes,
places of models, and the device.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kills
import numpy as np
import pytest
import standins
import torch
import yaml
from PIL import Image, ImageDraw

from cad.artifacts import PriorCache

ROOT = Path(__file__).parents[1]
SIDE = 32  # the least that LPIPS takes
STAGES = ("input", "prior", "prune", "refine", "stage1", "stage2", "orbit", "evaluate")
LOCAL = "data/weights"
SMALL = {"channel_base": 128, "channel_max": 8}
TRAINING = {"kimg": 0.008, "batch": 4, "precision": "float32", "density_points": 8, "checkpoint_kimg": 0.004}
OPEN_CLIP = {"model": f"local-dir:{LOCAL}/clip-evaluation", "pretrained": None}
REDUCED: dict[str, Any] = {
    "defaults": ["paper", "_self_"],
    "profile": "reduced",
    "runtime": {"threads": 1, "device": "cpu", "renderer": "reference"},
    "tracking": {"mode": "disabled"},
    "models": {name: f"{LOCAL}/{name}" for name in ("zero123", "refiner", "controlnet", "depth", "clip")}
    | {f"deepfloyd_stage{stage}": f"{LOCAL}/deepfloyd/stage{stage}" for stage in (1, 2)},
    "input": {"resolution": SIDE, "min_side": SIDE},
    "prior": {"poses": 6, "samples": 2, "steps": 2, "precision": "float32", "batch": 4, "shard_poses": 3},
    "prune": {"max_bad_pixels": SIDE**2, "min_clip_similarity": -1.0},
    "refine": {
        "precision": "float32",
        "shard_poses": 3,
        "controlnet_depth": {"steps": 4},
        "deepfloyd_if": {"stage1": {"steps": 4}, "stage2": {"steps": 4}},
    },
    "generator": {
        "z_dim": 8, "w_dim": 8, "plane_resolution": 16, "plane_channels": 4, "decoder_hidden": 8,
        "upsampler_channels": 8, "feature_channels": 8, "raw_resolution": 16, "output_resolution": SIDE,
        "coarse_samples": 4, "fine_samples": 4, **SMALL,
    },
    "discriminator": SMALL,
    "stage1": TRAINING,
    "stage2": TRAINING
    | {"upsampler_channels": 8, "patch_size": SIDE, "patch_channel_base": 128, "patch_channel_max": 8},
    "orbit": {"frames": 4, "seeds": 2, "coarse_samples": 4, "fine_samples": 4},
    "evaluate": {
        "scorers": {
            "CLIP ViT-L/14": OPEN_CLIP,
            "CLIP ViT-B/32": OPEN_CLIP,
            "brightness": {"kind": "light:Light", "settings": {"words": "bright"}},
        },
        "step_frames": 1,
    },
}  # fmt: skip
PLUGIN = """
import torch


class Light:
    weights_digest, preprocessing = "none", "none"

    def __init__(self, name, settings, device):
        self.name, self.words = name, settings["words"]

    def images(self, images):
        light = torch.tensor(images / 255.0).float().mean((1, 2, 3))
        return torch.nn.functional.normalize(torch.stack([light, 1 - light], 1), dim=1)

    def texts(self, texts):
        return torch.tensor([[1.0, 0.0] if self.words in text else [0.0, 1.0] for text in texts])
"""


def write_open_clip(folder: Path) -> None:
    """A tiny open_clip model in the layout of its hub folders."""
    import open_clip
    from safetensors.torch import save_file

    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(6)
    model = open_clip.model.CLIP(**config)
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )


def write_weights(folder: Path) -> None:
    """Stand-ins of all that the DAG loads, and LPIPS, which is bundled."""
    folder.mkdir(parents=True)
    standins.write_zero123(folder / "zero123")
    standins.write_stable_diffusion(folder / "refiner")
    standins.write_clip(folder / "clip")
    standins.write_controlnet(folder / "controlnet")
    standins.write_depth(folder / "depth")
    standins.write_deepfloyd(folder / "deepfloyd")
    write_open_clip(folder / "clip-evaluation")
    shutil.copytree(ROOT / "data/weights/lpips", folder / "lpips")


def write_scenes(folder: Path) -> None:
    """One scene of each benchmark as its authors pack them: RGBA pictures, and poses that nobody is to read."""
    lego, holder = folder / "nerf_synthetic/lego", folder / "Synthetic_NSVF/Wineholder"
    for place in (lego / "train", holder / "rgb", holder / "pose"):
        place.mkdir(parents=True)
    draw_picture(lego / "train/r_0.png", (220, 180, 30), "rectangle")
    frame = {"file_path": "./train/r_0", "rotation": 0.01, "transform_matrix": "no matrix"}
    (lego / "transforms_train.json").write_text(json.dumps({"camera_angle_x": 0.69, "frames": [frame]}))
    draw_picture(holder / "rgb/0_train_0000.png", (120, 40, 20), "ellipse")
    (holder / "pose/0_train_0000.txt").write_text("no pose\n")


def draw_picture(path: Path, color: tuple[int, int, int], shape: str) -> None:
    picture = Image.new("RGBA", (96, 96), (0, 0, 0, 0))
    getattr(ImageDraw.Draw(picture), shape)((28, 20, 68, 76), fill=(*color, 255))
    picture.save(path)


def copy_project(folder: Path) -> None:
    """The working tree without its data, runs and lock file, as a Git repository of its own."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in listed:
        top = Path(name).parts[0]
        if top not in ("data", "data.dvc", "runs", "store", "dvc.lock", "reports") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "plugins/light.py").write_text(PLUGIN)
    (folder / "experiments/profile/reduced.yaml").write_text("# @package _global_\n" + yaml.safe_dump(REDUCED))


def commit(folder: Path) -> None:
    kills.call(folder, "git", "add", "--all")
    kills.call(folder, "git", "commit", "--quiet", "-m", "all")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the DAG has run."""
    folder = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standins, "RESOLUTION", SIDE)
        write_weights(folder / LOCAL)
    copy_project(folder)
    for stage in yaml.safe_load((folder / "dvc.yaml").read_text())["stages"].values():
        for dep in stage.get("do", stage)["deps"]:  # of the bundled profile; nothing here loads what is missing
            if dep.startswith("data/weights/") and not (folder / dep).exists():
                (folder / dep).mkdir(parents=True)
                (folder / dep / "none.txt").write_text("none")
    write_scenes(folder / "scenes")
    kills.call(folder, "git", "init", "--quiet")
    for key, value in (("user.name", "test"), ("user.email", "test@example.org")):
        kills.call(folder, "git", "config", key, value)
    for layout, place, scene, words in (
        ("nerf-synthetic", "nerf_synthetic", "lego", "a bright digger"),
        ("nsvf", "Synthetic_NSVF", "Wineholder", "a wine holder"),
    ):
        given = ("--prompt", words, "--polar", "70")
        kills.call(folder, "cad", "data", "import", layout, f"scenes/{place}", "--scene", scene, *given)
    entry = folder / "experiments/object/wineholder.yaml"
    values = yaml.safe_load(entry.read_text())
    values["refines"]["wineholder"]["kind"] = "deepfloyd-if"
    entry.write_text("# @package _global_\n" + yaml.safe_dump(values))
    commit(folder)
    objects = "object=[lego,wineholder]"
    kills.call(folder, "dvc", "exp", "run", "-S", "profile=reduced", "-S", objects, OMP_NUM_THREADS="1")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_stage_of_both_objects_ran_up_to_the_report(project: Path) -> None:
    for name in ("lego", "wineholder"):
        for stage in STAGES:
            assert (project / "runs" / name / stage / "lineage.json").is_file(), (name, stage)
    table = (project / "reports/table1.md").read_text()
    assert "82.56" in table, "the paper's own row"
    for words in ("lego", "wineholder", "brightness"):
        assert words in table, words


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_pictures_are_the_scenes_and_their_poses_are_not_read(project: Path) -> None:
    for name, dataset in (("lego", "nerf-synthetic"), ("wineholder", "nsvf")):
        origin = json.loads((project / f"data/objects/{name}/source.json").read_text())["origin"]
        assert (origin["dataset"], origin["pose"], origin["frame"]) == (dataset, "ignored", 0)
    lego = np.asarray(Image.open(project / "runs/lego/input/image.png"))
    assert lego.shape == (SIDE, SIDE, 3)
    assert np.abs(lego[SIDE // 2, SIDE // 2].astype(int) - (220, 180, 30)).max() <= 2
    assert (lego[0] == 255).all()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_object_is_refined_by_its_own_family(project: Path) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    assert params["refine"]["kind"] == "controlnet-depth"
    assert params["refines"]["wineholder"]["kind"] == "deepfloyd-if"
    for name in ("lego", "wineholder"):
        prior, refined = (PriorCache.open(project / "runs" / name / stage) for stage in ("prior", "refine"))
        assert (len(prior), prior.samples, len(refined), refined.samples, refined.resolution) == (6, 2, 6, 1, SIDE)
        same = [np.array_equal(refined.read(i)[0], sample) for i in range(6) for sample in prior.read(i)]
        assert not any(same)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_scorers_scored_the_orbits(project: Path) -> None:
    for name in ("lego", "wineholder"):
        scorers = json.loads((project / f"runs/{name}/evaluate/metrics.json").read_text())["scorers"]
        assert set(scorers) == {"CLIP ViT-L/14", "CLIP ViT-B/32", "brightness"}
        for scorer in scorers.values():
            assert {"3d", "2d"} <= set(scorer["rows"])
            assert all(abs(row[kind]) <= 100.001 for row in scorer["rows"].values() for kind in ("image", "text"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_changed_plugin_makes_its_stage_and_no_other_run_again(project: Path) -> None:
    file = project / "plugins/light.py"
    try:
        file.write_text(PLUGIN + "\n# another\n")
        kills.call(project, "dvc", "repro", "plugins")
        said = kills.call(project, "dvc", "status")
    finally:
        file.write_text(PLUGIN)
    assert "evaluate@lego" in said
    assert "evaluate@wineholder" in said
    assert not [stage for stage in STAGES[:-1] if f"{stage}@" in said], said
