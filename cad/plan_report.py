"""The plan as a table, at rates that were given or measured."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cad.config import Params
from cad.config.kinds import is_plugin
from cad.errors import UserError
from cad.plan import RATES, Cost, check_disk, gigabytes, model_sources, plan, weight_bytes

COLUMNS = ("stage", "entry", "work", "hours", "peak memory", "disk", "DVC storage")


def show_plan(params: Params, names: Sequence[str], rates: Sequence[str], measure: bool, console: Console) -> None:
    """Print the costs of these evaluations; UserError, after the table, where the disk is too small for them."""
    given = parse_rates(rates)
    known, fetched = weight_bytes(model_sources(params, names))
    costs = plan(params, names, known)
    measured, peaks = _measured(params, costs, console) if measure else ({}, {})
    found = {**measured, **given}
    table = Table(*COLUMNS, title=f"profile {params.profile}", title_justify="left")
    for row in table_rows(costs, found, peaks):
        table.add_row(*row)
    console.print(table)
    for name in sorted(found):
        origin = "given" if name in given else "measured here"
        console.print(f"{name}: {found[name]:.1f} per second, {origin}")
    hours = [cost.hours(found) for cost in costs if cost.work]
    missing = sorted({name for cost in costs for name in cost.work if name not in found})
    console.print(f"hours: {sum(each for each in hours if each is not None):.2f} in all" + _without(missing))
    console.print("≤: if pruning keeps every pose; > : networks alone, without the activations of a batch")
    needed = check_disk(costs, fetched, Path())
    console.print(f"disk: {gigabytes(needed)} with DVC's copies and {gigabytes(fetched)} of weights to fetch at most")


def _without(missing: Sequence[str]) -> str:
    if not missing:
        return ""
    return f", without {', '.join(missing)}: give their rates, e.g. --rate {missing[0]}=40, or take --measure"


def _measured(params: Params, costs: Sequence[Cost], console: Console) -> tuple[dict[str, float], dict[str, int]]:
    from cad.plan_measure import measure_rates  # which imports torch and all that is measured

    return measure_rates(params, costs, console.print)


def parse_rates(texts: Sequence[str]) -> dict[str, float]:
    """Rates per second from NAME=NUMBER; UserError for another name or no positive number."""
    return dict(_parse_rate(text) for text in texts)


def _parse_rate(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    if name not in RATES and not is_plugin(name):
        raise UserError(f"--rate {text}: there is no rate {name!r}; known: {', '.join(RATES)}, e.g. --rate zero123=40")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"--rate {text}: {number!r} is no positive number; give how many are done per second")
    return name, value


def table_rows(costs: Sequence[Cost], rates: Mapping[str, float], peaks: Mapping[str, int]) -> Iterator[list[str]]:
    """A line per stage: stage, entry, work, hours, memory, disk, DVC storage; `peaks` are measured bytes by stage."""
    for cost in costs:
        bound = "≤ " if cost.stage == "refine" else ""
        work = ", ".join(f"{bound}{amount:,} {unit(name)}" for name, amount in cost.work.items()) or "—"
        hours = cost.hours(rates) if cost.work else None
        peak = peaks.get(cost.stage)
        memory = f"> {gigabytes(cost.memory)}" if cost.memory else "not measured"
        memory = f"{gigabytes(peak)} measured" if peak else memory
        disk = f"{bound}{gigabytes(cost.disk)}"
        yield [cost.stage, cost.entry, work, "—" if hours is None else f"{bound}{hours:.2f}", memory, disk, disk]


def unit(rate: str) -> str:
    """What a rate counts."""
    if is_plugin(rate):
        return f"images by {rate}"
    return {"stage1": "images", "stage2": "images", "orbit": "frames"}.get(rate, f"{rate} UNet evaluations")
