"""The report: tables, figures, and a page that says where each number comes from."""

import os
from pathlib import Path
from typing import Any

import pandas
from rich.console import Console
from rich.text import Text

from cad.artifacts import digest, read_image, read_json, write_atomic
from cad.config import Params
from cad.errors import UserError
from cad.report import bars, measures_forms
from cad.report.markup import EMPTY, markdown_escape
from cad.report.measures import read_measures
from cad.report.objects import objects_png
from cad.report.overview import RunFolders, overview_png
from cad.report.table1 import build_table, from_csv
from cad.report.table1_forms import markdown, show_table1, table_files, write_table1
from cad.tracking import open_tracker

ALL = "overview.png"  # the figure of all objects
FILES = ("table1.md", "table1.csv", "table1.tex", "bars.md", "bars.csv", "measures.md", "measures.csv")


def run_folders(params: Params, runs: Path, entry: str) -> RunFolders:
    """The folders of an evaluation entry and of the stages above it."""
    above = params.ancestors("evaluate", entry) | {"evaluate": entry}
    return RunFolders(**{stage: runs / above[stage] / stage for stage in RunFolders.__dataclass_fields__})


def metrics_files(params: Params, runs: Path) -> dict[str, Path]:
    """The metrics file of each row of `report.rows`."""
    return {name: runs / entry / "evaluate" / "metrics.json" for name, entry in params.report.rows.items()}


def overview_name(entry: str) -> str:
    """File name of an entry's own figure."""
    return f"overview-{entry}.png"


def overviews(params: Params, runs: Path) -> dict[str, bytes]:
    """All figures by file name: overview.png with the first entry of each object, and one of every entry."""
    folders = {entry: run_folders(params, runs, entry) for entry in dict.fromkeys(params.report.rows.values())}
    first: dict[str, RunFolders] = {}
    for entry, each in folders.items():
        first.setdefault(params.object_of("evaluate", entry), each)
    own = {overview_name(entry): overview_png(each) for entry, each in folders.items()}
    return {ALL: objects_png(list(first.values())), **own}


def write_tables(params: Params, runs: Path, reports: Path) -> None:
    """Write Table 1 as Markdown, CSV and LaTeX."""
    write_table1(metrics_files(params, runs), reports)


def write_overviews(params: Params, runs: Path, reports: Path) -> None:
    """Draw the overview figures of the evaluation entries in `report.rows`."""
    for name, content in overviews(params, runs).items():
        write_atomic(reports / name, content)


def write_report(params: Params, runs: Path, reports: Path) -> None:
    """Write everything: Table 1, the measures, the bars, the overview figures and index.md.

    UserError for the first file that is missing or broken; then nothing is written, for all is made before.
    """
    files = metrics_files(params, runs)
    table = build_table(files)
    measured = read_measures(files)
    judged = bars.judge(measured)
    figures = overviews(params, runs)
    parts = [
        "# CAD, reproduced: the report\n",
        "*Unofficial reproduction. Written by `cad report all` from the files under `runs/`; nothing on this page was "
        "typed by hand.*\n",
        f"![Inputs, prior samples, pruning, refinement and the orbits of all objects]({ALL})\n",
        "## Table 1\n",
        markdown(table),
        "## Bars\n",
        bars.markdown(judged),
        "## Measures\n",
        measures_forms.markdown(measured),
        "As files: " + ", ".join(f"[`{name}`]({name})" for name in FILES) + ".\n",
    ]
    parts += [entry_section(params, runs, entry) for entry in dict.fromkeys(params.report.rows.values())]
    parts += ["## Where each number comes from\n", provenance(params, runs, reports, files)]
    tables = table_files(table) | measures_forms.measures_files(measured) | bars.bars_files(judged)
    for name, content in (tables | figures | {"index.md": "\n".join(parts).encode()}).items():
        write_atomic(reports / name, content)


def track_report(params: Params, runs: Path, reports: Path) -> None:
    """Log the written report to W&B: Table 1, measures and bars as tables, the figures, the folder as an artifact."""
    files = metrics_files(params, runs)
    inputs = {name: digest(path) for name, path in files.items()}
    with open_tracker(params.tracking, "report", "report", params.report.model_dump(), inputs) as tracker:
        for name in ("table1", "measures", "bars"):
            tracker.table(f"report/{name}", pandas.read_csv(reports / f"{name}.csv"))
        for name in (ALL, *map(overview_name, dict.fromkeys(params.report.rows.values()))):
            tracker.image(f"report/{Path(name).stem}", read_image(reports / name), step=0)
        tracker.artifact("report", reports, "report")


def entry_section(params: Params, runs: Path, entry: str) -> str:
    """The part of the page about one evaluation: figure, prompt, pruning, scorers."""
    folders = run_folders(params, runs, entry)
    metrics = read_json(folders.evaluate / "metrics.json", "prompt", "frames", "seeds", "scorers")
    out = [
        f"## {entry}\n",
        f"![Input, prior samples, pruning, refinement and the orbits of {entry}]({overview_name(entry)})\n",
        f"Prompt: *{markdown_escape(metrics['prompt'])}*. Orbit: {metrics['frames']} frames at the reference's polar "
        f"angle, {metrics['seeds']} seed(s) per branch. Profile: `{params.profile}`.\n",
        pruning(read_json(folders.prune / "summary.json")),
        scorer_list(metrics),
    ]
    return "\n".join(out)


def pruning(summary: dict[str, Any]) -> str:
    """What pruning did (Sec. 3.3), and in toyworld how right it was."""
    said = []
    if "kept" in summary and "poses" in summary:
        said.append(f"Pruning kept {summary['kept']} of {summary['poses']} poses")
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(summary.get("reasons", {}).items()))
        said[-1] += f" ({reasons})." if reasons else "."
    truth = summary.get("truth")
    if truth:
        precision, recall = (
            EMPTY if truth.get(key) is None else f"{truth[key]:.2f}" for key in ("precision", "recall")
        )
        said.append(f"Against the known truth: precision/recall of rejections {precision}/{recall}.")
        if truth.get("bad_before") is not None and truth.get("bad_after") is not None:
            said.append(
                f"Truly bad: {truth['bad_before']:.1%} → {truth['bad_after']:.1%} (first sample of all poses → chosen "
                "sample of kept poses)."
            )
    return " ".join(said) + "\n"


def scorer_list(metrics: dict[str, Any]) -> str:
    """Which scorers gave the numbers, with their preprocessing and the digest of their weights."""
    return "".join(
        f"- Scorer **{markdown_escape(name)}**: {part['kind']}, `{part['model']}`"
        f"{' / ' + part['pretrained'] if part['pretrained'] else ''}; {part['preprocessing']}; weights sha256 "
        f"`{part['weights'][:16]}`.\n"
        for name, part in metrics["scorers"].items()
    )


def provenance(params: Params, runs: Path, reports: Path, files: dict[str, Path]) -> str:
    """Every file that the page was made from, with its digest, and the command that makes it again."""
    named: dict[Path, str] = {}
    for name, path in files.items():
        folders = run_folders(params, runs, params.report.rows[name])
        named.setdefault(path, f"Scores of {name}, of the true object and of controls")
        named.setdefault(path.parent / "views" / "frames.csv", f"Scores of {name}, frame by frame")
        named.setdefault(folders.orbit / "cameras.json", "Orbit")
        named.setdefault(folders.prune / "summary.json", "Pruning")
        named.setdefault(folders.input / "input.json", "Input")
    out = ["| What | File | sha256 |", "|:--|:--|:--|"]
    out.append(f"| Rows marked (paper) | Table 1 of the paper, as `cad/report/paper.py` has it | {EMPTY} |")
    for path, what in named.items():
        out.append(f"| {markdown_escape(what)} | {link(path, reports)} | `{digest(path)[:16]}` |")
    said = (
        "Make them again with `dvc repro`; the `lineage.json` of every stage's folder has the digests of what it read."
    )
    return "\n".join([*out, "", said, ""])


def link(path: Path, reports: Path) -> str:
    """A Markdown link to a file, relative to the page."""
    return f"[`{path.as_posix()}`]({Path(os.path.relpath(path, reports)).as_posix()})"


def show_report(reports: Path) -> None:
    """Print Table 1 and the bars in the terminal, and the files to look at."""
    table, judged = from_csv(reports / "table1.csv"), bars.from_csv(reports / "bars.csv")
    console = Console()
    show_table1(table, console)
    console.print()
    bars.show_bars(judged, console)
    figures = sorted(reports.glob("overview*.png"))
    if not figures:
        raise UserError(f"{reports / ALL}: missing; run `cad report all`")
    console.print()
    for path in [*figures, reports / "measures.md", reports / "index.md"]:
        console.print(Text(f"Look at {path}", style="bold"))
