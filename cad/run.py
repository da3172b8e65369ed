"""`cad run`: from a picture to an orbit and a page, as one command that goes on where it stopped.

DVC runs the stages, so what is done is not done again; a stage that was cut off resumes by itself.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cad.artifacts import write_atomic
from cad.config import TABLES, Params, load
from cad.config.compose import composed_text
from cad.errors import UserError
from cad.repro import reproduce
from cad.stages import RUNS

LAST = "orbit"
PAGES = Path("reports/pages")  # Git ignores it


@contextmanager
def profile_chosen(params_file: Path, experiments: Path, profile: str | None) -> Iterator[None]:
    """Compose params.yaml anew for another profile, with the objects that it has; nothing for the one that it is of.

    As `dvc exp run -S profile=...` does, this forgets edits by hand; if the body fails, they are put back. UserError
    for an unknown profile, and for objects that have no file to be composed of.
    """
    params = load(params_file)
    if profile is None or profile == params.profile:
        yield
        return
    lost = [name for name in params.objects if not (experiments / "object" / f"{name}.yaml").is_file()]
    if lost:
        raise UserError(
            f"{params_file}: --profile {profile} would drop {', '.join(lost)}, which no file in "
            f"{experiments / 'object'} describes; write {lost[0]}.yaml there, or remove it here"
        )
    before = params_file.read_bytes()
    write_atomic(params_file, composed_text(profile, list(params.objects), experiments).encode())
    try:
        yield
    except BaseException:
        write_atomic(params_file, before)
        raise


def stages_to(params: Params, name: str) -> list[str]:
    """DVC's names of an object's stages up to its orbit, in the order of the data flow."""
    above = {**params.ancestors(LAST, name), LAST: name}
    return [f"{stage}@{above[stage]}" for stage in TABLES if stage in above]


def make_orbit(name: str, params_file: Path, say: Callable[[str], None]) -> Path:
    """Version data/, run what is not done of an object's stages up to its orbit, and write its page; returns the page.

    Raises UserError where the disk is too small for them, before any runs, or one that names the stage that failed; the
    same call then goes on there.
    """
    from cad.plan import check_room
    from cad.report.object_page import write_page

    params = load(params_file)
    stages = stages_to(params, name)
    check_room(params, [(stage, entry) for stage, _, entry in (each.partition("@") for each in stages)])
    version_data()
    say(f"{name}: {len(stages)} stages, {stages[0]} to {stages[-1]}; what is done is not done again")
    reproduce(1, stages)
    page = PAGES / f"{name}.html"
    write_page(params, RUNS, name, page)
    return page


def version_data() -> None:
    """`dvc add data`, where data/ is DVC's; UserError where there is no DVC or it refuses."""
    if not Path("data.dvc").is_file():
        return
    if shutil.which("dvc") is None:
        raise UserError("dvc: is not found; activate the environment: source .venv/bin/activate")
    command = ["dvc", "--wait-for-lock", "add", "--quiet", "data"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        reason = (ended.stderr.strip().splitlines() or ["dvc add failed"])[0].removeprefix("ERROR: ")
        raise UserError(f"data.dvc: {reason}; see `dvc add data`")
