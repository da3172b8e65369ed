"""Do the tests notice? Faults of the kind that still trains, planted one by one; each must turn a test red.

Every fault is one exact replacement in a temporary copy of cad/ and tests/; the repository is never touched. First the
untouched copy must pass the same tests, for a red test proves nothing if it is always red. Prints the table and writes
it to benchmarks/mutations.md; exit code 1 if a fault survives or its text is not found exactly once.

    python benchmarks/mutations.py
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_suffix(".md")


class Fault(NamedTuple):
    """One planted fault: its name, the file, the text that it replaces, and the tests (paths, node ids) to run."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


CAMERA, RENDER, STAGES = "tests/test_camera.py", "tests/render/test_reference.py", "tests/train/test_stages.py"
FUSED = "tests/render/test_fused.py"
FAULTS = (
    Fault(
        "azimuth sign: reference minus target",
        "cad/camera.py",
        "turn = azimuth - reference_azimuth",
        "turn = reference_azimuth - azimuth",
        (CAMERA,),
    ),
    Fault(
        "mean of the three planes instead of their sum",
        "cad/render/reference.py",
        "features.reshape(batch, 3, planes.shape[2], count).sum(1)",
        "features.reshape(batch, 3, planes.shape[2], count).mean(1)",
        (RENDER,),
    ),
    Fault(
        "axes of the (x, z) plane swapped",
        "cad/render/reference.py",
        "PLANE_AXES = (0, 1, 0, 2, 1, 2)",
        "PLANE_AXES = (0, 1, 2, 0, 1, 2)",
        (RENDER,),
    ),
    Fault(
        "target patch of Eq. 10 not detached",
        "cad/train/losses.py",
        "distance(patch_3d, patch_2d.detach())",
        "distance(patch_3d, patch_2d)",
        ("tests/train/test_losses.py",),
    ),
    Fault(
        "context of the null branch not zeroed",
        "cad/prior/zero123.py",
        "torch.cat([torch.zeros_like(context), context])",
        "torch.cat([context, context])",
        ("tests/prior/test_zero123.py",),
    ),
    Fault(
        "ADA moves p the wrong way",
        "cad/models/ada.py",
        "self.step * ((error > 0) - (error < 0))",
        "self.step * ((error < 0) - (error > 0))",
        ("tests/models/test_ada.py",),
    ),
    Fault(
        "R1 not multiplied by its lazy interval",
        "cad/train/distill.py",
        "descend(penalty * self.settings.r1_interval,",
        "descend(penalty,",
        (STAGES,),
    ),
    Fault(
        "EMA of the wrong net: the generator follows its average",
        "cad/train/distill.py",
        "update_ema(self.average, self.generator,",
        "update_ema(self.generator, self.average,",
        (STAGES,),
    ),
    Fault(
        "pruning by the best sample's bad pixels (min for max)",
        "cad/prior/prune.py",
        "int(bad_pixels.max())",
        "int(bad_pixels.min())",
        ("tests/prior/test_prune.py",),
    ),
    Fault(
        "white background missing",
        "cad/render/reference.py",
        "features[:, :3] + passed",
        "features[:, :3]",
        (RENDER,),
    ),
    Fault(
        "fused: mean of the three planes instead of their sum",
        "cad/render/csrc/field.h",
        "cad::store(row + c, sum);",
        "cad::store(row + c, sum / 3.f);",
        (FUSED,),
    ),
    Fault(
        "fused: axes of the (x, z) plane swapped",
        "cad/render/csrc/field.h",
        "kAxes[3][2] = {{0, 1}, {0, 2}, {1, 2}}",
        "kAxes[3][2] = {{0, 1}, {2, 0}, {1, 2}}",
        (FUSED,),
    ),
    Fault(
        "fused: white background missing",
        "cad/render/csrc/tiles.h",
        "k < kColors ? seen + passed[lane] : seen;",
        "seen;",
        (FUSED,),
    ),
    Fault(
        "CUDA: a barrier of the backward pass missing",
        "cad/render/csrc/cuda/backward.cu",
        "        __syncthreads();\n        add_products(\n            out_sum,",
        "        add_products(\n            out_sum,",
        (FUSED,),
    ),
    Fault(
        "occupancy: the tangents' constant missing from the bound",
        "cad/render/csrc/occupancy.cpp",
        "return highest + nothing + constant + f.bias;",
        "return highest + nothing + f.bias;",
        ("tests/render/test_occupancy.py",),
    ),
    Fault(
        "inference: samples behind the end of a ray counted",
        "cad/render/csrc/inference.cpp",
        "Lanes visible = spent(sum.thickness) ? Lanes{} : densities[done];",
        "Lanes visible = densities[done];",
        ("tests/render/test_inference.py",),
    ),
)


def plant(fault: Fault, folder: Path) -> str:
    """Put a fault into the copy and return the file's former text; ValueError unless its text is there exactly once."""
    path = folder / fault.file
    text = path.read_text(encoding="utf-8")
    if (count := text.count(fault.old)) != 1:
        raise ValueError(f"{fault.file}: holds {fault.old!r} {count} times, not once; adapt benchmarks/mutations.py")
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
    return text


def copy(folder: Path) -> None:
    """Code, tests and what these import, pytest's settings, as they are now; data by a link, for it is only read."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("cad", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    (folder / "data").symlink_to(ROOT / "data")


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the copy, whose `cad` comes before the installed one; no bytecode, which could outlive a fault."""
    own = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "CAD_CACHE": str(folder / ".cache")}
    env = os.environ | own
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test(folder: Path, tests: tuple[str, ...]) -> str | None:
    """The first test that fails in the copy, None if all pass; RuntimeError if pytest could not run them."""
    options = ("-x", "-q", "-rf", "--tb=no", "--no-header", "-p", "no:cacheprovider", "-m", "not slow and not gpu")
    done = call(folder, "-m", "pytest", *options, *tests)
    failed = re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    if done.returncode == 0 and not failed:
        return None
    if done.returncode == 1 and failed:
        return str(failed[0])
    raise RuntimeError(f"pytest ended with {done.returncode} and no failed test:\n{done.stdout}\n{done.stderr}")


def markdown(caught: dict[str, str | None]) -> str:
    """The table: fault, file, the test that caught it."""
    rows = [
        f"| {i} | {fault.name} | `{fault.file}` | {f'`{found}`' if (found := caught[fault.name]) else '**survives**'} |"
        for i, fault in enumerate(FAULTS, start=1)
    ]
    count = sum(found is not None for found in caught.values())
    head = [
        "# Planted faults",
        "",
        "Written by `python benchmarks/mutations.py`: each fault alone in a copy of the code, and the first test that",
        f"fails because of it. The same tests pass on the untouched copy. Caught: {count} of {len(FAULTS)}.",
        "",
        "| | fault | file | caught by |",
        "|---|---|---|---|",
    ]
    return "\n".join(head + rows) + "\n"


def main() -> int:
    """Plant all faults; 0 if every one is caught."""
    with tempfile.TemporaryDirectory(prefix="cad-mutations-") as name:
        folder = Path(name).resolve()
        copy(folder)
        imported = call(folder, "-c", "import cad; print(cad.__file__)").stdout.strip()
        print(f"cad is imported from {imported}", file=sys.stderr)
        if Path(imported) != folder / "cad/__init__.py":
            print(f"error: {imported}: not the copy in {folder}; nothing was tried", file=sys.stderr)
            return 1
        if failed := test(folder, tuple(dict.fromkeys(path for fault in FAULTS for path in fault.tests))):
            print(f"error: {failed}: fails without any fault; mend it first", file=sys.stderr)
            return 1
        caught: dict[str, str | None] = {}
        for fault in FAULTS:
            try:
                former = plant(fault, folder)
            except ValueError as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            caught[fault.name] = test(folder, fault.tests)
            (folder / fault.file).write_text(former, encoding="utf-8")
            print(f"{fault.name}: {caught[fault.name] or 'SURVIVES'}", file=sys.stderr)
    table = markdown(caught)
    TABLE.write_text(table, encoding="utf-8")
    print(table, end="")
    return 0 if all(caught.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
