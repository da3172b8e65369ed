"""What each measure says of our orbits, of the true object and of controls that should fail, side by side.

Read from `metrics.json` alone. A row that could not be measured has a dash with a note that says why: no number is
ever filled in. The measures are such that different fakes fail; the definitions below name what passes each.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cad.artifacts import read_json
from cad.errors import UserError

Column = tuple[str, str]  # a measure's key, and what measured it (a scorer, features; "" where pixels alone do)


@dataclass(frozen=True)
class Measure:
    """A measure: its title, which direction is better, its form as a number, and what it says and does not say."""

    title: str
    higher: bool
    form: str
    said: str

    @property
    def arrow(self) -> str:
        """The better direction."""
        return "↑" if self.higher else "↓"


MEASURES = {
    "image": Measure(
        "Image score", True, "{:.2f}",
        "100 x cosine of the CLIP embeddings of a frame and of the input view, mean over frames. A fake that passes: "
        "the input copied to every frame has 100 by construction, which says nothing.",
    ),
    "text": Measure(
        "Text score", True, "{:.2f}",
        "100 x cosine of the CLIP embeddings of a frame and of the prompt, mean over frames. A fake that passes: any "
        "one picture that fits the prompt, copied to every frame.",
    ),
    "azimuth": Measure(
        "Azimuth retrieval", True, "{:.1%}",
        "share of frames whose nearest true view (smallest mean squared pixel difference) lies within {within:.0f}° "
        "of the right azimuth; by chance {chance:.1%}. The true object's is the ceiling; copies and blanks stay at "
        "chance. A fake that passes: blurred colours that lie on the right sides; it does not see detail.",
    ),
    "silhouette": Measure(
        "Silhouette IoU", True, "{:.3f}",
        "overlap of a frame's outline with the true one, mean over frames. The true object's is the ceiling. A fake "
        "that passes: a shape of any colour; and one outline copied to all frames gets far where the object looks "
        "alike from all sides.",
    ),
    "kid": Measure(
        "CLIP-feature KID", False, "{:.1f}",
        "kernel distance between the features (of the named scorer) of the frames and of true views that are no frame "
        "of the orbit, {kid_unit}: near 0, or a little below, for equal distributions. A fake that passes: true views "
        "in any order; it sees no pose.",
    ),
    "lpips": Measure(
        "LPIPS between seeds", True, "{:.3f}",
        "perceptual distance between two seeds' frames at equal pose, mean over pairs and frames: 0 if all seeds give "
        "one object. To be read against that of the refined samples the generator learned from. A fake that passes: "
        "noise; being different is not being good.",
    ),
    "warp": Measure(
        "Warp / still", False, "{:.2f}",
        "how much of the change between views the depth does not explain. warp: mean absolute RGB difference, in grey "
        "levels of 255, between a frame carried by its own depth into the view {step} frame(s) later and that view; "
        "still: the same pixels without warping; share: of the pixels inside the outlines, those that both views show. "
        "A fake whose views do not change (still below {still_least:g}), as one picture on a plane that faces every "
        "camera, has a small warp error and no finite ratio; colours that move with the camera have 1 or more. Fakes "
        "that pass: every true object, the wrong one too; and smooth depth helps, which the next measure takes out.",
    ),
    "one_depth": Measure(
        "Warp / still, one depth", False, "{:.2f}",
        "the same with both branches carried by the 3D branch's depth at the pixels where both are solid, so that a "
        "difference is one of the colours, not of the depth's resolution. A fake that passes: as before; and it "
        "favours the branch whose depth it is.",
    ),
    "relative": Measure(
        "Relative image score", True, "{:.3f}",
        "(image score - that of another object) / (that of the true object - that of another object): 0 is no better "
        "than another object, 1 as good as the true one; above 1 the frames are nearer to the input view than the true "
        "orbit is, as copies of the input are, which is no better than 1. Measured only where the true object's score "
        "is {span:g} points or more above the other's. A fake that passes: the copied input, as for the image score.",
    ),
}  # fmt: skip
ROWS = {
    "3d": "Ours, 3D branch",
    "2d": "Ours, 2D branch",
    "truth": "True object",
    "copied": "Reference copied",
    "other": "Another object",
    "untrained": "Untrained generator",
}
# Why a row has no number where its evaluation has the measure: by (row, measure).
NOT_MEASURED = {
    **dict.fromkeys([("truth", "lpips"), ("other", "lpips")], "one object, so no seeds to compare"),
    **dict.fromkeys([("3d", "lpips"), ("2d", "lpips")], "needs two seeds or more"),
    ("copied", "lpips"): "0 by construction: the same picture for every seed",
    ("untrained", "lpips"): "rendered with one seed only",
    ("untrained", "warp"): "no surface to warp, or no two frames at this distance",
    ("truth", "relative"): "1 by definition",
    ("other", "relative"): "0 by definition",
    **dict.fromkeys([("copied", "relative"), ("untrained", "relative")], "asked of ours only"),
    **dict.fromkeys([(row, "one_depth") for row in ("truth", "copied", "other", "untrained")], "asked of ours only"),
    **dict.fromkeys([(row, "one_depth") for row in ("3d", "2d")], "needs both branches and a surface that both show"),
    **dict.fromkeys(
        [(row, "relative") for row in ("3d", "2d")],
        "the scorer sees too little between the true and another object, or `evaluate.controls` is off; name a scorer "
        "under `evaluate.scorers` that tells objects apart",
    ),
}
NO_TRUTH = "nothing is known about the true object"
NO_ROW = "this row was not evaluated (`evaluate.controls`, or the branch is not trained)"
NO_MEASURE = "this evaluation does not have the measure; run `cad evaluate` again"
NO_NUMBER = "too few frames, or no surface, to measure it"
NEEDS_TRUTH = ("azimuth", "silhouette", "kid", "relative")  # and the rows truth and other


@dataclass(frozen=True)
class Value:
    """A measured number, its std over seeds, a number beside it (worst seed; refined samples'), or what was warped.

    value: infinite where the ratio of a warp has nothing to be a ratio of.
    """

    value: float
    std: float | None = None
    beside: float | None = None
    warp: "Warp | None" = None


@dataclass(frozen=True)
class Warp:
    """What a ratio is made of: difference with and without the warp in grey levels, pixels, their share in [0, 1]."""

    warp: float
    still: float
    pixels: int
    share: float


@dataclass(frozen=True)
class Measured:
    """What one metrics file has measured: per column and row a value; and what the definitions need."""

    name: str
    object: str
    columns: dict[Column, dict[str, Value]]
    about: dict[str, Any]  # within, chance, step, still_least, span, kid_unit: of the definitions
    truth: bool
    titles: dict[str, str] = field(default_factory=dict)  # of measures whose title depends on the unit

    def value(self, column: Column, row: str) -> Value | None:
        """A cell; None where nothing was measured."""
        return self.columns.get(column, {}).get(row)

    def title(self, key: str) -> str:
        """A measure's title, with the unit that the file names."""
        return self.titles.get(key, MEASURES[key].title)


def number(key: str, value: float) -> str:
    """A number in its measure's form."""
    return MEASURES[key].form.format(value) if math.isfinite(value) else "∞"


def read_measures(rows: dict[str, Path]) -> list[Measured]:
    """What the metrics files of these rows have measured; UserError for one that is missing or of another form."""
    done = []
    for name, path in rows.items():
        metrics = read_json(path, "scorers", "object")
        try:
            done.append(from_metrics(name, metrics))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            said = f"is no metrics file of this version ({error!r}); run `cad evaluate` again"
            raise UserError(f"{path}: {said}") from None
    return done


def from_metrics(name: str, metrics: dict[str, Any]) -> Measured:
    """The measures of one metrics file; parts that it does not have are left out."""
    columns: dict[Column, dict[str, Value]] = {}
    for kind in ("image", "text"):
        for scorer, part in metrics["scorers"].items():
            columns[kind, scorer] = {
                row: Value(float(values[kind]), values.get(f"{kind}_std")) for row, values in part["rows"].items()
            }
    about: dict[str, Any] = {}
    titles: dict[str, str] = {}
    if truth := metrics.get("truth"):
        about |= {"within": float(truth["within_deg"]), "chance": float(truth["chance"])}
        columns["azimuth", ""] = {
            row: Value(
                float(values["azimuth_right"]),
                values.get("azimuth_right_std"),
                min(map(float, values["azimuth_right_seeds"])) if values.get("azimuth_right_seeds") else None,
            )
            for row, values in truth["rows"].items()
        }
        columns["silhouette", ""] = {
            row: Value(float(values["silhouette_iou"]), values.get("silhouette_iou_std"))
            for row, values in truth["rows"].items()
        }
    if part := metrics.get("distribution"):
        about["kid_unit"] = str(part["unit"])
        titles["kid"] = f"CLIP-feature {part['unit']}"
        columns["kid", part["features"]] = {row: Value(float(each["kid"])) for row, each in part["rows"].items()}
    if part := metrics.get("diversity"):
        refined = float(part["refined"]) if part.get("refined") is not None else None
        columns["lpips", part["distance"]] = {
            row: Value(float(each["lpips"]), None, refined) for row, each in part["rows"].items()
        }
    if part := metrics.get("consistency"):
        about |= {"step": int(part["step_frames"]), "still_least": float(part["still_least"])}
        for key, rows in (("warp", "rows"), ("one_depth", "one_depth")):
            columns[key, ""] = {row: warped(each) for row, each in part[rows].items()}
    if "relative_image" in metrics:
        about["span"] = float(metrics["relative_span_least"])
        if foreign := set(metrics["relative_image"]) - set(metrics["scorers"]):
            raise ValueError(f"relative_image of {sorted(foreign)}")
        for scorer in metrics["scorers"]:
            found = metrics["relative_image"].get(scorer, {})
            columns["relative", scorer] = {row: Value(float(value)) for row, value in found.items()}
    return Measured(name, metrics["object"], columns, about, bool(truth), titles)


def warped(numbers: dict[str, Any]) -> Value:
    """A row of metrics.json's `consistency`; without a ratio the views show no change, and the value is infinite."""
    errors = float(numbers["warp_error"]), float(numbers["still_error"])
    parts = Warp(*errors, int(numbers["pixels"]), float(numbers["share"]))
    return Value(float(numbers.get("ratio", math.inf)), warp=parts)
