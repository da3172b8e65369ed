"""Training by two processes against one process of the same total batch."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from cad.artifacts import Checkpoint
from cad.config.compose import compose
from cad.errors import UserError
from cad.models.discriminator import minibatch_std
from cad.seeding import Part, drawn, drawn_integers, generator
from cad.stages import run_stage
from cad.train import parallel

ROOT = Path(__file__).parents[2]
BATCH, GROUP = 8, 2
# Sums in another order differ in the last bits; where a gradient is nearly 0, Adam makes that a part of its step.
LARGEST = 2e-4


def rank(monkeypatch, number, count):
    """Be one of so many processes, as far as nothing is exchanged."""
    monkeypatch.setattr(parallel, "processes", lambda: count)
    monkeypatch.setattr(parallel.dist, "get_rank", lambda: number)


@pytest.mark.parametrize("draw", [torch.rand, torch.randn])
def test_parts_are_rows_of_one_draw_and_streams_stay_in_step(draw):
    whole = generator("stream")
    expected = [drawn(draw, 4, 3, generator=whole), drawn_integers(100, 4, 2, generator=whole)]
    for rows in ([0, 2], [1, 3]):
        part = Part.of(generator("stream"), 4, torch.tensor(rows))
        assert torch.equal(drawn(draw, 2, 3, generator=part), expected[0][rows])
        assert torch.equal(drawn_integers(100, 2, 2, generator=part), expected[1][rows])
    with pytest.raises(ValueError, match="a part of 2 rows of a batch has no 4 rows"):
        drawn(draw, 4, generator=part)


def test_part_takes_over_a_stream_where_it_stands():
    stream = generator("stream")
    torch.rand(5, generator=stream)
    part = Part.of(stream, 4, torch.arange(4))
    assert torch.equal(drawn(torch.rand, 4, generator=part), torch.rand(4, generator=stream))


@pytest.mark.parametrize(("batch", "group", "count"), [(8, 2, 2), (8, 4, 2), (12, 3, 2), (8, 2, 4), (32, 4, 4)])
def test_minibatch_deviation_of_the_parts_is_that_of_the_whole(monkeypatch, batch, group, count):
    images = torch.randn(batch, 3, 2, 2, generator=generator("images"))
    found = minibatch_std(images, group)
    seen = []
    for number in range(count):
        rank(monkeypatch, number, count)
        part = parallel.part_of(generator("draws"), batch, group)
        assert len(part.rows) == parallel.share("stage1", batch, group) == batch // count
        torch.testing.assert_close(minibatch_std(images[part.rows], group), found[part.rows])
        seen += part.rows.tolist()
    assert sorted(seen) == list(range(batch))


def test_groups_that_cannot_be_shared_are_a_user_error(monkeypatch):
    rank(monkeypatch, 0, 2)
    with pytest.raises(
        UserError, match=r"stage1\.batch: 4 is 1 groups of discriminator\.mbstd_group = 4, which 2 proc"
    ):
        parallel.share("stage1", 4, 4)


def test_one_process_alone_draws_and_shares_as_it_is():
    stream = generator("stream")
    assert parallel.part_of(stream, 4, 2) is stream
    assert (parallel.share("stage1", 6, 4), parallel.processes(), parallel.is_main()) == (6, 1, True)
    assert parallel.told() == {}


@pytest.fixture
def job(tmp_path, first, second, shape, judge, camera, models, prior):
    """A function that writes what `teammate.py` is to train, six steps of each stage; changes: to both stages."""

    def write(name, steps=6, batch=BATCH):
        long = {"batch": batch, "kimg": steps * batch / 1000}
        # ADA's p grows from the first interval on, so that its state and its draws matter.
        content = {
            "first": {**first.model_dump(), **long, "ada_target": 0.0, "ada_kimg": 0.05, "lr_discriminator": 0.02},
            "second": {**second.model_dump(), **long},
            "shape": shape.model_dump(),
            "judge": {**judge.model_dump(), "mbstd_group": GROUP, "pose_noise": 0.1},
            "camera": camera.model_dump(),
            "models": models.model_dump(),
            "prior": str(prior.folder),
            "out": str(tmp_path / name),
        }
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        return path

    return write


def launch(count, folder, *command):
    """Run Python on a script as so many processes, as a launcher starts them; returns what each has said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    fixed = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    meeting = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [meeting | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(count)] if count > 1 else [{}]
    started = [
        subprocess.Popen(
            [sys.executable, *command], env=fixed | rank, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ranks
    ]  # fmt: skip
    said = [process.communicate(timeout=600)[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError("\n".join(said))
    return said


def train(job, count):
    """Let so many processes train; returns the folder."""
    launch(count, ROOT, str(ROOT / "tests/teammate.py"), str(job))
    return Path(json.loads(job.read_text())["out"])


@pytest.fixture
def project(tmp_path):
    """A project in which stage 1 of the robot could start."""
    text = (ROOT / "params.yaml").read_text().replace("mode: auto", "mode: disabled")
    (tmp_path / "params.yaml").write_text(text)
    (tmp_path / "runs/robot/refine").mkdir(parents=True)
    (tmp_path / "runs/robot/refine/cache.json").write_text("{}")
    return tmp_path


@pytest.mark.slow
def test_of_two_processes_the_first_holds_the_folder_and_speaks(project):
    said = launch(2, project, str(ROOT / "tests/teamwork.py"), "train", "stage1", "robot")
    assert said == ["stage1 robot: runs/robot/stage1\n", ""]
    out = project / "runs/robot/stage1"
    assert json.loads((out / "result.json").read_text()) == {"mean": 0.5, "tracked": False}
    assert json.loads((out / "lineage.json").read_text())["processes"] == "2"
    assert sorted(path.name for path in out.iterdir()) == ["lineage.json", "result.json"]
    assert not (project / ".work").exists()


def test_what_is_no_training_is_refused_under_a_launcher(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^accelerate launch: prior is no training; start it once, with --engine ray"):
        run_stage("prior", "robot", Path("params.yaml"))


def largest_difference(one, other, stage):
    """Over all tensors of two checkpoints, optimisers' and averages included; relative to 1 or to the value."""
    one, other = Checkpoint.open(one / stage, stage), Checkpoint.open(other / stage, stage)
    assert one.groups == other.groups
    found = {}
    for group in one.groups:
        left, right = one.tensors(group), other.tensors(group)
        assert left.keys() == right.keys()
        for key in left:
            a, b = left[key].double(), right[key].double()
            found[f"{group}/{key}"] = float(((a - b).abs() / b.abs().clamp(min=1)).max())
    return max(found.values()), max(found, key=found.get)


@pytest.mark.slow
def test_two_processes_train_what_one_does(job):
    """Six steps of both stages, with R1 (every 2), density (every 3), ADA (every 2), noisy poses and patches."""
    alone, team = train(job("alone"), 1), train(job("team"), 2)
    state = Checkpoint.open(team / "stage1", "stage1").state
    assert (state["step"], state["processes"]) == (6, 2)
    assert state["ada"] == Checkpoint.open(alone / "stage1", "stage1").state["ada"]
    assert state["ada"]["p"] > 0, state["ada"]
    for stage in ("stage1", "stage2"):
        difference, where = largest_difference(alone, team, stage)
        print(stage, difference, where)
        assert difference < LARGEST, where
        mine, theirs = ((folder / stage / "history.csv").read_text().splitlines() for folder in (team, alone))
        assert mine[0] == theirs[0]
        for a, b in zip(mine[-1].split(","), theirs[-1].split(","), strict=True):
            assert float(a) == pytest.approx(float(b), rel=1e-3, abs=1e-5)


@pytest.fixture
def command_folder(tmp_path, first, shape, judge, camera, prior):
    """A function that makes a project of this name, in which `cad train stage1 robot` takes six tiny steps."""

    def make(name):
        values = compose("mini", ["robot"], ROOT / "experiments").model_dump()
        values["runtime"] |= {"threads": 1, "device": "cpu", "renderer": "reference"}
        values["tracking"] |= {"mode": "disabled"}
        values["input"] |= {"resolution": shape.output_resolution}
        values["generator"] = shape.model_dump()
        values["discriminator"] = {**judge.model_dump(), "mbstd_group": GROUP, "pose_noise": 0.1}
        values["stage1"] = {**first.model_dump(), "batch": BATCH, "kimg": 6 * BATCH / 1000}
        values["stage2"] |= {"patch_size": shape.output_resolution}
        values["camera"] = camera.model_dump()
        folder = tmp_path / name
        shutil.copytree(prior.folder, folder / "runs/robot/refine")
        (folder / "params.yaml").write_text(yaml.safe_dump(values))
        return folder

    return make


@pytest.mark.slow
def test_accelerate_launch_trains_what_one_process_does(command_folder, monkeypatch):
    """The command of docs/scaling.md; without GPUs in the settings its processes meet by gloo."""
    for name in ("ACCELERATE_CONFIG_FILE", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    alone, team = command_folder("alone"), command_folder("team")
    monkeypatch.setenv("HF_HOME", str(team / "home"))  # and not a configuration of the user's
    train_command = ["-m", "cad.cli.main", "train", "stage1", "robot"]
    assert launch(1, alone, *train_command)[0].endswith("stage1 robot: runs/robot/stage1\n")
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    (said,) = launch(1, team, *launcher, *train_command)
    assert said.count("stage1 robot: runs/robot/stage1\n") == 1, said
    one, two = alone / "runs/robot", team / "runs/robot"
    assert json.loads((two / "stage1/lineage.json").read_text())["processes"] == "2"
    assert Checkpoint.open(two / "stage1", "stage1").state["step"] == 6
    difference, where = largest_difference(one, two, "stage1")
    assert difference < LARGEST, where


@pytest.mark.slow
def test_two_processes_resume_to_the_same_bits_and_one_does_not_go_on_with_their_work(job, tmp_path):
    whole = train(job("whole"), 2)
    train(job("parts", steps=3), 2)
    parts = train(job("parts"), 2)  # stage 2 of the three steps goes on, as stage 1 does
    one, other = (Checkpoint.open(folder / "stage1", "stage1") for folder in (whole, parts))
    for group in one.groups:
        left, right = one.tensors(group), other.tensors(group)
        assert all(torch.equal(left[key], right[key]) for key in left), group
    with pytest.raises(RuntimeError, match="was begun by 2 processes, but there are 1 now"):
        train(job("parts", steps=9), 1)
