"""Sampling and refining on a local Ray of two workers, one of them killed: the bits of this process alone."""

import dataclasses

import pandas
import pieces
import pytest
import torch

from cad.artifacts import PriorCache, digest, write_parquet
from cad.config import PriorSettings, RefineSettings
from cad.prior.refine import refine_prior
from cad.prior.sample import sample_prior

SAMPLE = PriorSettings(
    kind="zero123", settings=None, poses=5, samples=2, steps=2, guidance=3.0, eta=1.0, precision="float32", bf16=False,
    offload=False, batch=3, shard_poses=1,
)  # fmt: skip
WALK = {"strength": 0.5, "guidance": 4.0, "steps": 4}
REFINE = RefineSettings.model_validate(
    {
        "enabled": True, "kind": "latent-diffusion", "settings": None, "precision": "float32", "bf16": False,
        "draws": 2, "batch": 3, "view_prompts": True, "shard_poses": 1, "latent_diffusion": WALK,
        "controlnet_depth": {**WALK, "conditioning_scale": 0.8},
        "deepfloyd_if": {"stage1": WALK, "stage2": {**WALK, "noise_level": 250}},
    }
)  # fmt: skip


@pytest.fixture
def single_threaded():
    """One thread, as the workers have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def keep_all_but_one(prior, out):
    """Decisions as pruning writes them."""
    cache = PriorCache.open(prior)
    table = pandas.DataFrame({"pose": cache.pose_ids, "azimuth": cache.azimuth, "polar": cache.polar})
    table = table.assign(bad_pixels_max=0, clip_min=0.9, clip_max=0.9, chosen=[1, 0, 0, 1, 1])
    table = table.assign(kept=[True, False, True, True, True], reason="kept")
    write_parquet(out / "decisions.parquet", table)


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed_write_what_one_process_does(
    camera, models, input_dir, tmp_path, context, single_threaded, capsys
):
    def sample(name, engine):
        elsewhere = dataclasses.replace(context, engine=engine)
        (tmp_path / name).mkdir(exist_ok=True)
        sample_prior(SAMPLE, camera, models, input_dir, tmp_path / name, elsewhere)
        return digest(tmp_path / name)

    def refine(name, engine):
        elsewhere = dataclasses.replace(context, engine=engine)
        (tmp_path / name).mkdir()
        folders = input_dir, tmp_path / "prior", tmp_path / "prune"
        refine_prior(REFINE, camera, models, *folders, tmp_path / name, elsewhere)
        return digest(tmp_path / name)

    sampled = sample("prior", context.engine)
    keep_all_but_one(tmp_path / "prior", tmp_path / "prune")
    refined = refine("refine", context.engine)
    with pieces.two_workers() as engine:
        struck = [pieces.Striking(engine, tmp_path / f"struck-{k}") for k in range(2)]
        assert sample("prior-on-ray", struck[0]) == sampled
        assert refine("refine-on-ray", struck[1]) == refined
        assert all(each.mark.exists() for each in struck)
        assert capsys.readouterr().err.count("a worker was lost; piece 0 is done again") == 2
        # What one engine began, the other goes on with: three shards here, the others on Ray.
        with pytest.raises(KeyboardInterrupt):
            sample("resumed", Interrupted(context.engine, after=3))
        resuming = Interrupted(engine, after=None)
        assert sample("resumed", resuming) == sampled
        assert resuming.seen == [3, 4]


class Interrupted:
    """An engine that is interrupted after so many pieces, and remembers those it was given."""

    def __init__(self, engine, after):
        self.engine, self.after, self.seen = engine, after, None

    def run(self, begin, plan, numbers, take, advance, context):
        self.seen, done = list(numbers), []

        def counted(piece, result):
            take(piece, result)
            done.append(piece)
            if len(done) == self.after:
                raise KeyboardInterrupt

        self.engine.run(begin, plan, numbers, counted, advance, context)
