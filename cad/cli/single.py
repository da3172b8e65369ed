"""`cad input`, `cad orbit`, `cad evaluate`: the stages that need no group (Sec. 4)."""

from cad.cli.stage import PARAMS, EngineOption, Entry, ParamsFile, run


def prepare(entry: Entry, params: ParamsFile = PARAMS) -> None:
    """Cut the object out of its image and centre it on white."""
    run("input", entry, params)


def render(entry: Entry, params: ParamsFile = PARAMS, engine: EngineOption = "local") -> None:
    """Render 360 degree orbits of both branches, with alpha and depth."""
    run("orbit", entry, params, engine)


def score(entry: Entry, params: ParamsFile = PARAMS, engine: EngineOption = "local") -> None:
    """Score every frame of the orbit against the image and the prompt, with controls."""
    run("evaluate", entry, params, engine)
