"""`cad toyworld`: the procedural world's views, its small models, and objects made from it."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The procedural world and the training of its small models.", no_args_is_help=True)

PARAMS = Path("experiments/toyworld/params.yaml")
Params = Annotated[Path, typer.Option(help="Settings of the small models.")]
Work = Annotated[Path, typer.Option(help="Folder of the work in progress, not versioned.")]
Weights = Annotated[Path, typer.Option(help="Folder that the weights go to.")]
WORK, WEIGHTS = Path(".work/toyworld"), Path("data/weights")


@app.command()
def render(params: Params = PARAMS, work: Work = WORK) -> None:
    """Render the training and held-out views (about 5 ms each); goes on where it stopped."""
    from cad.toyworld import settings, train

    train.render(settings.load_settings(params), work)
    typer.echo(f"views are in {work}")


@app.command("train")
def train_model(name: str, params: Params = PARAMS, work: Work = WORK, weights: Weights = WEIGHTS) -> None:
    """Train clip, clip-evaluation, autoencoder, sharpen, zero123, refiner, depth or controlnet; resumes."""
    from cad.toyworld import settings, train

    train.train(name, settings.load_settings(params), work, weights, typer.echo)
    if name == "sharpen":
        typer.echo(f"{weights / 'autoencoder'} and its copies written; run `dvc add data` to version them")
    else:
        typer.echo(f"{weights / name} written; run `dvc add data` to version it")


@app.command("export")
def export_model(name: str, params: Params = PARAMS, work: Work = WORK, weights: Weights = WEIGHTS) -> None:
    """Write the weights of zero123 or refiner as they are in the middle of their training."""
    from cad.toyworld import settings, train

    train.export(name, settings.load_settings(params), work, weights)
    typer.echo(f"{weights / name} written")


@app.command("check")
def check_models(
    params: Params = PARAMS,
    work: Work = WORK,
    weights: Weights = WEIGHTS,
    reports: Annotated[Path, typer.Option(help="Folder that toyworld.md and toyworld.csv go to.")] = Path("reports"),
) -> None:
    """Measure the trained models on held-out instances (some minutes) and write reports/toyworld.md and .csv."""
    from cad.toyworld import check, settings

    check.check(settings.load_settings(params), work, weights, reports, typer.echo)
    typer.echo(f"{reports / 'toyworld.md'} written")


@app.command("pruning")
def prove_pruning(
    params: Params = PARAMS,
    profile: Annotated[
        Path, typer.Option(help="Profile whose sampling and checks are used, and whose thresholds are compared.")
    ] = Path("experiments/profile/mini.yaml"),
    work: Work = WORK,
    weights: Weights = WEIGHTS,
    reports: Annotated[Path, typer.Option(help="Folder that pruning.md, .csv and .png go to.")] = Path("reports"),
) -> None:
    """Choose pruning's thresholds on training instances, measure them on held-out ones (five minutes)."""
    from cad.toyworld import pruning, settings

    pruning.prove(settings.load_settings(params), profile, work, weights, reports, typer.echo)
    typer.echo(f"{reports / 'pruning.md'} written")


@app.command("refinement")
def compare_strengths(
    params: Params = PARAMS,
    work: Work = WORK,
    weights: Weights = WEIGHTS,
    runs: Annotated[Path, typer.Option(help="Folder of the runs whose generated objects are compared.")] = Path("runs"),
    reports: Annotated[Path, typer.Option(help="Folder that refinement.md, .csv and .png go to.")] = Path("reports"),
) -> None:
    """Refine held-out samples at strengths 0.4 to 1.0 by both families, as in Fig. 10 (some ten minutes; resumes)."""
    from cad.toyworld import refinement, settings

    refinement.compare(settings.load_settings(params), work, weights, runs, reports, typer.echo)
    typer.echo(f"{reports / 'refinement.md'} written")


@app.command("elevation")
def measure_elevation(
    params: Params = PARAMS,
    profile: Annotated[str, typer.Option(help="Profile whose sampling and matcher are measured.")] = "mini",
    weights: Weights = WEIGHTS,
    reports: Annotated[Path, typer.Option(help="Folder that elevation.md goes to.")] = Path("reports"),
) -> None:
    """Measure estimated elevations on held-out instances (some minutes) and write reports/elevation.md."""
    from cad.config.compose import compose
    from cad.toyworld import elevation, settings

    composed = compose(profile, [], Path("experiments"))
    elevation.measure(settings.load_settings(params), composed, weights, reports, typer.echo)
    typer.echo(f"{reports / 'elevation.md'} written")


@app.command("object")
def make_object(
    name: str,
    family: Annotated[str, typer.Option(help="Family, e.g. robot.")],
    seed: Annotated[int, typer.Option(help="Instance; held out, so 1000000 or more.")],
    polar: Annotated[float, typer.Option(help="Polar angle of the reference view, degrees.")],
    params: Params = PARAMS,
    data: Annotated[Path, typer.Option(help="Folder of the objects.")] = Path("data/objects"),
    groups: Annotated[Path, typer.Option(help="Hydra group of the objects.")] = Path("experiments/object"),
) -> None:
    """Write a held-out instance's picture and prompt, and its entry in experiments/object/."""
    from cad.toyworld import objects, settings

    chosen = settings.load_settings(params)
    objects.write_object(name, family, seed, polar, chosen.camera, chosen.data.resolution, data, groups)
    typer.echo(f"{groups / name}.yaml written; run `dvc add data`")
