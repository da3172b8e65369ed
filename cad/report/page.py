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
from cad.report.overview import RunFolders, draw_overview, overview_png
from cad.report.table1 import (
    EMPTY,
    ROWS,
    build_table,
    from_csv,
    markdown,
    markdown_escape,
    measured_lines,
    show_table1,
    table_files,
    write_table1,
)
from cad.tracking import open_tracker


def run_folders(params: Params, runs: Path, entry: str) -> RunFolders:
    """The folders of an evaluation entry and of the stages above it."""
    above = params.ancestors("evaluate", entry) | {"evaluate": entry}
    return RunFolders(**{stage: runs / above[stage] / stage for stage in RunFolders.__dataclass_fields__})


def metrics_files(params: Params, runs: Path) -> dict[str, Path]:
    """The metrics file of each row of `report.rows`."""
    return {name: runs / entry / "evaluate" / "metrics.json" for name, entry in params.report.rows.items()}


def overview_name(params: Params, entry: str) -> str:
    """File name of an entry's figure: the first row's is the main one."""
    first = next(iter(params.report.rows.values()))
    return "overview.png" if entry == first else f"overview-{entry}.png"


def write_tables(params: Params, runs: Path, reports: Path) -> None:
    """Write Table 1 as Markdown, CSV and LaTeX."""
    write_table1(metrics_files(params, runs), reports)


def write_overviews(params: Params, runs: Path, reports: Path) -> None:
    """Draw the overview figure of every evaluation entry in `report.rows`."""
    for entry in dict.fromkeys(params.report.rows.values()):
        draw_overview(run_folders(params, runs, entry), reports / overview_name(params, entry))


def write_report(params: Params, runs: Path, reports: Path) -> None:
    """Write everything: Table 1, the overview figures and index.md.

    UserError for the first file that is missing or broken; then nothing is written, for all is made before.
    """
    files = metrics_files(params, runs)
    table = build_table(files)
    entries = list(dict.fromkeys(params.report.rows.values()))
    figures = {overview_name(params, entry): overview_png(run_folders(params, runs, entry)) for entry in entries}
    parts = [
        "# CAD, reproduced: the report\n",
        "*Unofficial reproduction. Written by `cad report all` from the files under `runs/`; nothing on this page was "
        "typed by hand.*\n",
        "## Table 1\n",
        markdown(table),
    ]
    parts += [entry_section(params, runs, entry) for entry in entries]
    parts += ["## Where each number comes from\n", provenance(params, runs, reports, files)]
    for name, content in (table_files(table) | figures | {"index.md": "\n".join(parts).encode()}).items():
        write_atomic(reports / name, content)


def track_report(params: Params, runs: Path, reports: Path) -> None:
    """Log the written report to W&B: Table 1 as a table, every overview figure, and the folder as an artifact."""
    files = metrics_files(params, runs)
    inputs = {name: digest(path) for name, path in files.items()}
    with open_tracker(params.tracking, "report", "report", params.report.model_dump(), inputs) as tracker:
        tracker.table("report/table1", pandas.read_csv(reports / "table1.csv"))
        for entry in dict.fromkeys(params.report.rows.values()):
            name = overview_name(params, entry)
            tracker.image(f"report/{Path(name).stem}", read_image(reports / name), step=0)
        tracker.artifact("report", reports, "report")


def entry_section(params: Params, runs: Path, entry: str) -> str:
    """The part of the page about one evaluation: figure, prompt, pruning, and what the toyworld's truth says."""
    folders = run_folders(params, runs, entry)
    metrics = read_json(folders.evaluate / "metrics.json", "prompt", "frames", "seeds", "scorers")
    figure = overview_name(params, entry)
    out = [
        f"## {entry}\n",
        f"![Input, prior samples, pruning, refinement and the orbits of {entry}]({figure})\n",
        f"Prompt: *{markdown_escape(metrics['prompt'])}*. Orbit: {metrics['frames']} frames at the reference's polar "
        f"angle, {metrics['seeds']} seed(s) per branch. Profile: `{params.profile}`.\n",
        pruning(read_json(folders.prune / "summary.json")),
        scorer_list(metrics),
        every_row(entry, folders.evaluate / "metrics.json", metrics),
    ]
    if "truth" in metrics:
        out.append(known_truth(metrics["truth"]))
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
        said.append(f"Against the known truth its rejections have precision {precision} and recall {recall}.")
        if truth.get("bad_before") is not None and truth.get("bad_after") is not None:
            said.append(f"Truly bad samples: {truth['bad_before']:.1%} before pruning, {truth['bad_after']:.1%} after.")
    return " ".join(said) + "\n"


def scorer_list(metrics: dict[str, Any]) -> str:
    """Which scorers gave the numbers, with their preprocessing and the digest of their weights."""
    return "".join(
        f"- Scorer **{markdown_escape(name)}**: {part['kind']}, `{part['model']}`"
        f"{' / ' + part['pretrained'] if part['pretrained'] else ''}; {part['preprocessing']}; weights sha256 "
        f"`{part['weights'][:16]}`.\n"
        for name, part in metrics["scorers"].items()
    )


def every_row(name: str, path: Path, metrics: dict[str, Any]) -> str:
    """Every row of one evaluation under every scorer, with the number of views behind it."""
    labels = {key: line.label for key, line in measured_lines(name, path, metrics, {})}
    out = ["| Row | Scorer | Image score | Text score | Views |", "|:--|:--|--:|--:|--:|"]
    for scorer, part in metrics["scorers"].items():
        for key, label in labels.items():
            if key in part["rows"]:
                values = part["rows"][key]
                cells = [with_std(values, "image", "{:.2f}"), with_std(values, "text", "{:.2f}"), str(values["views"])]
                out.append("| " + " | ".join([markdown_escape(label), markdown_escape(scorer), *cells]) + " |")
    return "\n".join(out) + "\n"


def known_truth(truth: dict[str, Any]) -> str:
    """What only a world with known truth can say: do the views face the right way, and are the outlines right?"""
    out = [
        f"Against the toyworld's truth: the share of views whose nearest true view (smallest pixel difference) lies "
        f"within {truth['within_deg']:.0f}° of the right azimuth (by chance {truth['chance']:.1%}), and the mean IoU "
        "of the silhouettes.\n",
        "| Row | Right azimuth | Silhouette IoU |",
        "|:--|--:|--:|",
    ]
    for key, (label, _) in ROWS.items():
        if key in truth["rows"]:
            values = truth["rows"][key]
            shown = markdown_escape(label.format(name="3D branch").removeprefix("3D branch, "))
            cells = with_std(values, "azimuth_right", "{:.1%}"), with_std(values, "silhouette_iou", "{:.3f}")
            out.append(f"| {shown} | {cells[0]} | {cells[1]} |")
    return "\n".join(out) + "\n"


def with_std(values: dict[str, Any], key: str, form: str) -> str:
    """A mean and, where there is one, its std over seeds."""
    if key not in values:
        return EMPTY
    std = values.get(f"{key}_std")
    return form.format(values[key]) + (f" ± {form.format(std)}" if std is not None else "")


def provenance(params: Params, runs: Path, reports: Path, files: dict[str, Path]) -> str:
    """Every file that the page was made from, with its digest, and the command that makes it again."""
    named: dict[Path, str] = {}
    for name, path in files.items():
        folders = run_folders(params, runs, params.report.rows[name])
        named.setdefault(path, f"Scores of {name}, ceiling and controls")
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
    """Print Table 1 in the terminal, and the files to look at."""
    table = from_csv(reports / "table1.csv")
    console = Console()
    show_table1(table, console)
    figures = sorted(reports.glob("overview*.png"))
    if not figures:
        raise UserError(f"{reports / 'overview.png'}: missing; run `cad report all`")
    console.print()
    for path in [*figures, reports / "index.md"]:
        console.print(Text(f"Look at {path}", style="bold"))
