"""`cad demo show`: a packed run's prompt and scores, and views of new seeds from its float16 weights, in seconds."""

import math
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from cad.camera import Poses
from cad.demo.files import Demo, open_demos, restore
from cad.demo.picture import draw_demo, shaded
from cad.errors import UserError
from cad.evaluate.orbit import Views, render_views
from cad.report.measures import Measured, read_measures
from cad.report.measures_forms import show_measures
from cad.train.load import LoadedGenerator, load_generator

NEW_SEEDS = 4  # [ours] as many latents beyond the packed ones are rendered
ALL, CHECKED = slice(None), slice(None, None, 4)  # columns of a row; two of eight tell whether the weights are right
TOLERANCE = 1.0  # [ours] grey levels of 255; float16 gives about 0.01, another padding in one layer gave 16


def show_demos(root: Path, entries: list[str], out: Path, console: Console) -> None:
    """Show packed runs (all, if none is named), and draw a picture of each into `out`.

    Raises UserError before anything is printed or written if one of them is missing or broken.
    """
    demos = open_demos(root, entries)
    opened = [open_generator(demo) for demo in demos]
    measured = read_measures({demo.entry: demo.folder / "metrics.json" for demo in demos})
    say(console, f"{root}: {', '.join(demo.entry for demo in demos)}; the digest of every file is right.")
    say(console, "The weights are float16 copies of finished runs' averaged generators; nothing is trained here.")
    for demo, scores, (generator, apart) in zip(demos, measured, opened, strict=True):
        show_scores(demo, scores, console)
        show_views(demo, generator, apart, out / f"{demo.entry}.png", console)


def open_generator(demo: Demo) -> tuple[LoadedGenerator, tuple[float, int]]:
    """The packed generator, computing in float32, and the `difference` of its views from the run's own frames.

    Raises UserError if the code has changed since: other settings, other shapes of the networks, other pictures.
    """
    again = f"{restore(demo.folder)}, or pack a run of this version with `cad demo pack`"
    try:
        generator = load_generator(demo.weights, "stage2", torch.device("cpu"))
    except (UserError, RuntimeError) as error:  # of other settings, or of networks with other shapes now
        said = ", ".join(line.strip() for line in str(error).split("; ")[0].splitlines()[:3])
        raise UserError(f"{demo.weights}: does not fit this version of the code ({said}); {again}") from None
    branch, seed = demo.rows[0]
    apart = difference(views(demo, generator, seed, CHECKED).color, demo.row(branch, seed)[CHECKED])
    if apart[0] >= TOLERANCE:
        said = f"renders {apart[0]:.1f} grey levels off the run's own frames in the mean, more than float16 explains"
        raise UserError(f"{demo.weights}: {said}, so the code has changed since; {again}")
    return generator, apart


def show_scores(demo: Demo, scores: Measured, console: Console) -> None:
    """Print the prompt, the scores with what measured them, and on what they were measured."""
    metrics = demo.metrics
    console.print()
    say(console, f"{demo.entry}: “{demo.reference.prompt}”", style="bold")
    say(
        console,
        f"Scores of the finished run's full-precision orbit, not of the float16 copy: {metrics['frames']} frames at "
        f"polar angle {math.degrees(demo.polar):.0f}°, {metrics['seeds']} seed(s) per branch.",
    )
    for name, part in metrics["scorers"].items():
        say(console, f"Scorer {name}: {part['kind']}, {part['model']}, weights sha256 {part['weights'][:16]}")
    show_measures([scores], console)
    say(console, "reports/measures.md says what each of them means, and what passes it.", style="dim")


def show_views(
    demo: Demo, generator: LoadedGenerator, apart: tuple[float, int], picture: Path, console: Console
) -> None:
    """Render new seeds and draw them into `picture`; print how far the float16 copy is off, and paths to look at."""
    say(
        console,
        f"Seed {demo.rows[0][1]} rendered again from the float16 copy, against the run's own frames: mean difference "
        f"{apart[0]:.3f}, largest {apart[1]}, of 255 grey levels.",
    )
    start = time.perf_counter()
    first = 1 + max(seed for _, seed in demo.rows)
    new = {seed: views(demo, generator, seed, ALL) for seed in range(first, first + NEW_SEEDS)}
    count, seconds = NEW_SEEDS * len(demo.azimuth), time.perf_counter() - start
    say(console, f"Seeds {first} to {first + NEW_SEEDS - 1}, which are new: {count} views rendered in {seconds:.1f} s.")
    shape = shaded(new[first].depth, new[first].alpha)
    draw_demo(demo, {seed: each.color for seed, each in new.items()}, shape, picture)
    for path in demo.videos:
        say(console, f"Video: {path}")
    say(console, f"Look at {picture}: the input, the packed orbit, the new seeds", style="bold")


def views(demo: Demo, generator: LoadedGenerator, seed: int, columns: slice) -> Views:
    """One seed at packed azimuths through the branch that is packed first, rendered as the run's orbit was."""
    azimuth = torch.from_numpy(demo.azimuth[columns].copy())
    poses = Poses(azimuth, torch.full_like(azimuth, demo.polar))
    return render_views(generator, demo.rows[0][0], seed, poses, demo.orbit, generator.camera)


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> tuple[float, int]:
    """Mean and largest absolute difference of two sets of pictures, in grey levels."""
    apart = np.abs(a.astype(int) - b.astype(int))
    return float(apart.mean()), int(apart.max())


def say(console: Console, line: str, style: str = "") -> None:
    """Print a line as it is, however wide."""
    console.print(Text(line, style=style), soft_wrap=True)
