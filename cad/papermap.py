"""The map from the paper to the code: `python -m cad.papermap` checks it against the sources and writes its page.

`MAP` says what realises each section, equation, figure and number. It is held to the code without importing it:
symbols must exist, the docstrings of what claims to be a section or an equation must name it, parameters must be in the
profiles (with the paper's number in `paper`), stages in dvc.yaml; and the row of an equation or a figure that some
docstring names must have a symbol.
"""

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
PAGE = Path("docs/paper-map.md")
IMPLEMENTED, PARTLY, SETTINGS, NOT_YET, BACKGROUND = "implemented", "in part", "settings only", "not yet", "background"
STATES = {
    IMPLEMENTED: "there is code for it, and the main job runs it, with the values of its profile",
    PARTLY: "there is code for a part of it; the row says what is missing",
    SETTINGS: "a setting takes it, but nothing here has been made with it",
    NOT_YET: "there is nothing for it in this version",
    BACKGROUND: "the paper motivates, reviews or defines; there is nothing to compute",
}
PARTS = [
    *("Sec. 1", "Sec. 2", "Sec. 3", "Sec. 3.1", "Sec. 3.2", "Sec. 3.3", "Sec. 4", "Sec. 4.1", "Sec. 4.2", "Sec. 5"),
    *("App. A", "App. B", "App. C", "App. D"),
    *(f"Eq. {n}" for n in range(1, 12)),
    *(f"Fig. {n}" for n in range(1, 14)),
    "Table 1",
]
NUMBERS_NOTE = """The state speaks of the code. The paper's numbers stand in the profile `paper`, which has never been
run; what was run is `mini`, with smaller ones."""
OWN = "cad.papermap"  # its docstrings name parts as examples
OBJECT = "experiments/object/robot.yaml"  # stands for any object: `objects.robot.*` are its settings


@dataclass(frozen=True)
class Entry:
    """A statement of the paper and what realises it; texts are space-separated names.

    symbols: "module", "module:name" or "module:Class.method"; value: what the profile `paper` has for the parameters.
    """

    part: str
    says: str
    state: str
    symbols: str = ""
    parameters: str = ""
    stages: str = ""
    value: Any = None


# fmt: off
SECTIONS = [
    Entry("Sec. 1", "Introduction", BACKGROUND),
    Entry("Sec. 2", "Related work", BACKGROUND),
    Entry("Sec. 3", "Method, overview", IMPLEMENTED, "cad.stages"),
    Entry("Sec. 3.1", "Preliminaries: score distillation (SDS, VSD), needed for the baselines only", NOT_YET),
    Entry("Sec. 3.1", "A generator of triplanes, a continuous distribution of 3D objects", IMPLEMENTED,
          "cad.models.generator cad.models.generator:Generator", "generator.z_dim generator.plane_channels", "stage1"),
    Entry("Sec. 3.1", "Mapping network to w; the synthesis is controlled by w (AdaIN; here StyleGAN2's modulation)",
          IMPLEMENTED, "cad.models.mapping:Mapping cad.models.layers:ModulatedConv",
          "generator.w_dim generator.mapping_layers", "stage1"),
    Entry("Sec. 3.2", "Adversarial distillation", IMPLEMENTED,
          "cad.train.distill:Distiller cad.train.stage1:train_stage1", "stage1.kimg stage1.batch", "stage1"),
    Entry("Sec. 3.2", "Plane features are summed", IMPLEMENTED, "cad.render.reference:sample_planes", "", "stage1"),
    Entry("Sec. 3.2", "Volume rendering with hierarchical sampling", IMPLEMENTED, "cad.render.reference:render_rays",
          "generator.coarse_samples generator.fine_samples", "stage1 stage2 orbit"),
    Entry("Sec. 3.2", "Image-space upsampling of the raw rendering", IMPLEMENTED,
          "cad.models.upsampler2d:Upsampler2d", "generator.upsampler_channels", "stage1"),
    Entry("Sec. 3.2", "Consistency: the 2D branch is baked into a triplane upsampler that shares w", IMPLEMENTED,
          "cad.train.stage2:train_stage2 cad.models.upsampler3d:PlaneUpsampler",
          "stage2.plane_upsampling stage2.upsampler_channels", "stage2"),
    Entry("Sec. 3.2", "A small patch discriminator on the 3D branch", IMPLEMENTED,
          "cad.models.discriminator:PatchDiscriminator cad.render.image:render_patch",
          "stage2.patch_weight stage2.patch_size", "stage2"),
    Entry("Sec. 3.3", "Sampling: many views from Zero-1-to-3", IMPLEMENTED,
          "cad.prior.sample:sample_prior cad.prior.views:Zero123Views cad.prior.zero123:Zero123.sample",
          "prior.kind prior.steps prior.guidance prior.eta", "prior"),
    Entry("Sec. 3.3", "Pruning by geometry: shared mask, dilated; the most pixels outside it", IMPLEMENTED,
          "cad.prior.prune:count_bad_pixels cad.prior.prune:dilate", "prune.dilation_px prune.max_bad_pixels", "prune"),
    Entry("Sec. 3.3", "Of a kept view the sample with the highest CLIP score", IMPLEMENTED, "cad.prior.prune:decide",
          "prune.enabled", "prune"),
    Entry("Sec. 3.3", "Refinement: noise, then denoising by a text-guided model", IMPLEMENTED,
          "cad.prior.refine:refine_prior cad.prior.latent_diffusion:LatentDiffusion.sdedit", "refine.kind refine.draws",
          "refine"),
    Entry("Sec. 3.3", "Refinement by ControlNet on depth; proved on stand-ins, the published weights were never run",
          IMPLEMENTED, "cad.prior.controlnet:ControlNetRefiner cad.prior.depth:DepthEstimator",
          "refine.controlnet_depth models.controlnet models.depth", "refine"),
    Entry("Sec. 3.3", "Refinement by DeepFloyd IF; proved on stand-ins, the published weights were never run",
          IMPLEMENTED, "cad.prior.deepfloyd:DeepFloydRefiner",
          "refine.deepfloyd_if models.deepfloyd_stage1 models.deepfloyd_stage2", "refine"),
    Entry("Sec. 4", "Data: one image and a prompt per object: photographs, benchmark scenes, text to image. Missing: "
          "the paper's own pictures; the networks that matte, caption and imagine were never run with their weights",
          PARTLY, "cad.inputs.prepare:prepare_input cad.inputs.scenes:find_view cad.inputs.caption:Captioner "
          "cad.inputs.imagine",
          "input.resolution objects.robot.image objects.robot.prompt", "input"),
    Entry("Sec. 4", "Baselines: DreamFusion, Zero-1-to-3, ProlificDreamer, Magic123", NOT_YET),
    Entry("Sec. 4", "Metric: CLIP similarity over a 360 degree orbit", IMPLEMENTED, "cad.evaluate.orbit:render_orbit",
          "orbit.frames orbit.seeds", "orbit evaluate"),
    Entry("Sec. 4", "The absolute camera pose goes into the discriminator", IMPLEMENTED, "cad.camera:pose_label",
          "discriminator.pose_noise", "stage1 stage2"),
    Entry("Sec. 4.1", "Comparisons: quantitative (the baselines' numbers are quoted), qualitative, diversity", NOT_YET),
    Entry("Sec. 4.2", "Ablation of pruning, with and without ADA. Each variant is a row of settings; none is run",
          SETTINGS, "", "prune.enabled stage1.ada_enabled prior.poses", "prune stage1"),
    Entry("Sec. 4.2", "Ablation of the refinement", SETTINGS, "", "refine.enabled", "refine"),
    Entry("Sec. 4.2", "A single NeRF fitted to the samples instead of a distribution", NOT_YET),
    Entry("Sec. 5", "Conclusion and limits", BACKGROUND),
    Entry("App. A", "Overview", BACKGROUND),
    Entry("App. B", "User study", NOT_YET),
    Entry("App. C", "The generator is not conditioned on the pose", IMPLEMENTED, "cad.models.mapping:Mapping", "",
          "stage1"),
    Entry("App. C", "Pose-conditioned discriminator (of final and raw image, as in EG3D)", IMPLEMENTED,
          "cad.models.discriminator:Discriminator", "discriminator.channel_base", "stage1 stage2"),
    Entry("App. C", "The prior is sampled in advance and cached; every sample has its own pose, uniform on the sphere",
          IMPLEMENTED, "cad.prior.sample:sample_prior cad.camera:sphere_poses", "prior.poses", "prior"),
    Entry("App. C", "Adaptive discriminator augmentation in the first stage", IMPLEMENTED,
          "cad.models.ada:augment cad.models.ada:AdaController", "stage1.ada_enabled stage1.ada_target", "stage1"),
    Entry("App. C", "View-dependent prompting", IMPLEMENTED, "cad.prior.refine:view_name", "refine.view_prompts",
          "refine"),
    Entry("App. C", "Two training stages, ADA off in the second", IMPLEMENTED,
          "cad.train.stage1:train_stage1 cad.models.ada", "stage1.kimg stage2.kimg", "stage1 stage2"),
    Entry("App. C", "The reference's polar angle is estimated (One-2-3-45); `cad object add` does so, and the main job "
          "takes what it found. LoFTR was never run with its weights", PARTLY,
          "cad.inputs.elevation:estimate_polar",
          "elevation.turn_deg elevation.matcher objects.robot.reference_polar_deg", "input"),
    Entry("App. D", "Noise strength controls the diversity; no study of it is run", SETTINGS, "",
          "refine.latent_diffusion.strength", "refine"),
    Entry("App. D", "Consistency training against upsampling in 2D alone; not run", SETTINGS, "", "stage2.branch_3d",
          "stage2"),
]
EQUATIONS = [
    Entry("Eq. 1", "SDS objective (baseline DreamFusion)", NOT_YET),
    Entry("Eq. 2", "SDS gradient (baseline DreamFusion)", NOT_YET),
    Entry("Eq. 3", "VSD objective (baseline ProlificDreamer)", NOT_YET),
    Entry("Eq. 4", "Triplanes from a latent", IMPLEMENTED, "cad.models.generator:Generator.planes",
          "generator.plane_resolution generator.plane_channels", "stage1"),
    Entry("Eq. 5", "What score distillation aims at", BACKGROUND),
    Entry("Eq. 6", "Divergence between renderings and prior; minimised through Eq. 7 and 8, never evaluated",
          BACKGROUND),
    Entry("Eq. 7", "Discriminator's loss with R1", IMPLEMENTED,
          "cad.train.losses:discriminator_loss cad.train.losses:r1_penalty", "stage1.r1_gamma stage1.r1_interval",
          "stage1 stage2"),
    Entry("Eq. 8", "Generator's loss", IMPLEMENTED, "cad.train.losses:generator_loss", "stage1.lr_generator",
          "stage1 stage2"),
    Entry("Eq. 9", "Decoder of features to radiance and density", IMPLEMENTED,
          "cad.models.decoder cad.render.reference:Decoder", "generator.decoder_hidden", "stage1"),
    Entry("Eq. 10", "Consistency loss", IMPLEMENTED, "cad.train.losses:consistency_loss cad.train.perceptual",
          "stage2.lpips_weight models.lpips", "stage2"),
    Entry("Eq. 11", "Pruning by the least CLIP similarity", IMPLEMENTED,
          "cad.prior.prune:decide cad.prior.prune:clip_similarities", "prune.min_clip_similarity models.clip", "prune"),
]
FIGURES = [
    Entry("Fig. 1", "Applications: no inversion, no interpolation (several seeds are in every orbit)", NOT_YET),
    Entry("Fig. 2", "The framework", IMPLEMENTED, "cad.stages"),
    Entry("Fig. 3", "Baking the 2D upsampler into a 3D one", IMPLEMENTED,
          "cad.train.stage2 cad.train.synthesis cad.models.upsampler3d", "stage2.branch_3d", "stage2"),
    Entry("Fig. 4", "Qualitative comparison with the baselines", NOT_YET),
    Entry("Fig. 5", "Diversity compared with the baselines", NOT_YET),
    Entry("Fig. 6", "Impact of pose pruning; the figure is not made", SETTINGS, "",
          "prune.enabled stage1.ada_enabled prior.poses", "prune stage1"),
    Entry("Fig. 7", "Impact of the refinement; the figure is not made", SETTINGS, "", "refine.enabled", "refine"),
    Entry("Fig. 8", "Single mode against distribution", NOT_YET),
    Entry("Fig. 9", "User preferences", NOT_YET),
    Entry("Fig. 10", "Effects of the noise strength, with numbers, on toyworld; not on the paper's objects", PARTLY,
          "cad.toyworld.refinement cad.toyworld.refinement_report",
          "refine.latent_diffusion.strength", "refine"),
    Entry("Fig. 11", "Refined samples beside raw ones (`contact.png`)", IMPLEMENTED, "cad.prior.refine:contact_sheet",
          "",
          "refine"),
    Entry("Fig. 12", "Kept and rejected views (`contact.png`)", IMPLEMENTED, "cad.prior.prune:contact_sheet", "",
          "prune"),
    Entry("Fig. 13", "With and without consistency training. Both branches of one model are drawn; a model trained "
          "without the 3D branch is missing", PARTLY, "cad.evaluate.orbit:labelled_sheet", "stage2.branch_3d", "orbit"),
    Entry("Table 1", "CLIP scores. Our rows are measured, those of other methods are the paper's numbers", PARTLY,
          "cad.evaluate.score cad.evaluate.scorers:score cad.report.table1", "evaluate.scorers", "evaluate report"),
]
NUMBERS = [
    Entry("Sec. 4", "10 000 samples per object", IMPLEMENTED, "cad.camera:sphere_poses", "prior.poses", "prior", 10000),
    Entry("Sec. 4.2", "100 000 samples in one ablation", SETTINGS, "", "prior.poses", "prior"),
    Entry("Sec. 3.3", "N parallel samples of a view; the paper gives no N", IMPLEMENTED,
          "cad.prior.sample:sample_prior",
          "prior.samples", "prior"),
    Entry("Sec. 3.3", "Thresholds of pruning; the paper gives none", IMPLEMENTED, "cad.prior.prune:decide",
          "prune.max_bad_pixels prune.min_clip_similarity prune.dilation_px", "prune"),
    Entry("Sec. 4", "Images of 256 px", IMPLEMENTED, "cad.models.upsampler2d:Upsampler2d",
          "input.resolution generator.output_resolution", "input stage1", 256),
    Entry("App. C", "Field of view 49.1 deg", IMPLEMENTED, "cad.camera:focal_length", "camera.fov_deg", "", 49.1),
    Entry("App. C", "Camera at distance 2", IMPLEMENTED, "cad.camera:camera_to_world", "camera.radius", "", 2.0),
    Entry("App. C", "Volume box [-0.7, 0.7]^3", IMPLEMENTED, "cad.camera:near_far", "camera.half_side", "", 0.7),
    Entry("App. C", "Reference azimuth 180 deg", IMPLEMENTED, "cad.camera:relative_pose",
          "camera.reference_azimuth_deg", "", 180.0),
    Entry("App. C", "Triplanes of 128 px", IMPLEMENTED, "cad.models.synthesis:Synthesis", "generator.plane_resolution",
          "stage1", 128),
    Entry("App. C", "Raw rendering of 64 px", IMPLEMENTED, "cad.render.image:render_view", "generator.raw_resolution",
          "stage1 stage2", 64),
    Entry("App. C", "Triplanes of 256 px in the second stage (128 times 2)", IMPLEMENTED,
          "cad.models.upsampler3d:PlaneUpsampler", "stage2.plane_upsampling", "stage2", 2),
    Entry("Sec. 3.2", "Patches of 64 px", IMPLEMENTED, "cad.train.data:crop_places", "stage2.patch_size", "stage2", 64),
    Entry("App. C", "R1 weight 3 in all experiments", IMPLEMENTED, "cad.train.losses:r1_penalty",
          "stage1.r1_gamma stage2.r1_gamma stage2.patch_r1_gamma", "stage1 stage2", 3.0),
    Entry("App. C", "ADA on in the first stage", IMPLEMENTED, "cad.models.ada:AdaController", "stage1.ada_enabled",
          "stage1", True),
    Entry("App. C", "ADA off in the second stage", IMPLEMENTED, "cad.train.distill:PLAIN", "", "stage2"),
    Entry("Sec. 4", "Noise strength 0.8 for the ControlNet", IMPLEMENTED, "cad.prior.controlnet:ControlNetRefiner",
          "refine.controlnet_depth.strength", "refine", 0.8),
    Entry("Sec. 4", "Noise strength 0.3 for DeepFloyd's low resolution", IMPLEMENTED,
          "cad.prior.deepfloyd:DeepFloydRefiner", "refine.deepfloyd_if.stage1.strength", "refine", 0.3),
    Entry("Sec. 4", "Noise strength 0.7 for DeepFloyd's high resolution", IMPLEMENTED,
          "cad.prior.deepfloyd:DeepFloydRefiner", "refine.deepfloyd_if.stage2.strength", "refine", 0.7),
    Entry("Fig. 10", "Noise strengths 0.4 to 1.0", SETTINGS, "", "refine.latent_diffusion.strength", "refine"),
    Entry("Sec. 4", "120 frames in an orbit", IMPLEMENTED, "cad.camera:orbit_poses", "orbit.frames", "orbit", 120),
    Entry("Sec. 4", "1 200 images scored", NOT_YET),
    Entry("Table 1", "CLIP ViT-L/14 and ViT-B/32. They can be loaded, but are not bundled and were never run", PARTLY,
          "cad.evaluate.scorers:OpenClipScorer", "evaluate.scorers", "evaluate"),
    Entry("Table 1", "Scores of CAD and of four other methods, quoted", IMPLEMENTED, "cad.report.paper:TABLE1",
          "report.rows", "report"),
    Entry("Sec. 4", "1.5 and 1.5 days on 4 V100; lengths derived from it, never run", SETTINGS, "",
          "stage1.kimg stage2.kimg", "stage1 stage2"),
    Entry("Sec. 5", "0.1 frames per second at high resolution; not measured", NOT_YET),
    Entry("App. B", "10 images, 22 participants, first choice of more than 92 %", NOT_YET),
]
# fmt: on
NULL = "null"  # what a profile does not use
MAP = {"Sections": SECTIONS, "Equations": EQUATIONS, "Figures and tables": FIGURES, "Numbers": NUMBERS}


def docstrings(root: Path) -> dict[str, str]:
    """Docstring ("" for none) of every module, class, function, method and module-level name of `cad`, by symbol."""
    found: dict[str, str] = {}
    for file in sorted((root / "cad").rglob("*.py")):
        module = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found[module] = ast.get_docstring(tree) or ""
        for node in tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {f"{module}:{target.id}": "" for target in targets if isinstance(target, ast.Name)}
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[f"{module}:{node.name}"] = ast.get_docstring(node) or ""
            if isinstance(node, ast.ClassDef):
                methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
                found |= {f"{module}:{node.name}.{each.name}": ast.get_docstring(each) or "" for each in methods}
    return found


def references(text: str) -> set[str]:
    """Parts of the paper that a text names, e.g. "Sec. 3.2 and 4" or "Eq. 7 (loss), Eq. 8", as `PARTS` spells them."""
    kinds = {"Sec.": "Sec.", "Section": "Sec.", "App.": "App.", "Appendix": "App.", "Eq.": "Eq.", "Fig.": "Fig."}
    kinds |= {"Table": "Table", "Tab.": "Table"}
    number = r"(?:[A-D]\b|\d+(?:\.\d)?)"
    pattern = rf"\b({'|'.join(map(re.escape, kinds))})\s+({number}(?:(?:, | and | to ){number})*)"
    named = {f"{kinds[k]} {n}" for k, ns in re.findall(pattern, text) for n in re.findall(number, ns)}
    return named & set(PARTS)


def faults(root: Path, entries: list[Entry]) -> list[str]:
    """One line for every claim of the entries that the sources below `root` do not bear out."""
    yaml = YAML(typ="safe")
    named = docstrings(root)
    stages = yaml.load(root / "dvc.yaml")["stages"]
    profiles = {name: yaml.load(root / f"experiments/profile/{name}.yaml") for name in ("paper", "mini")}
    subject = yaml.load(root / OBJECT)
    found = [f"{part}: has no row" for part in PARTS if part not in {entry.part for entry in entries}]
    for entry in entries:
        where = f"{entry.part} ({entry.says.split('.')[0]})"
        symbols, parameters = entry.symbols.split(), entry.parameters.split()
        needs = {IMPLEMENTED: symbols, PARTLY: symbols, SETTINGS: parameters and not symbols}
        if not needs.get(entry.state, not (symbols or parameters)) or entry.state not in STATES:
            found.append(f"{where}: is {entry.state!r}, which its symbols and parameters do not fit")
        found += [f"{where}: there is no {symbol}" for symbol in symbols if symbol not in named]
        if entry in SECTIONS + EQUATIONS and entry.part != "Sec. 3":
            silent = [symbol for symbol in symbols if not _names(symbol, entry.part, named)]
            found += [f"{where}: the docstring of {symbol} does not name it" for symbol in silent]
        found += [f"{where}: dvc.yaml has no stage {stage}" for stage in entry.stages.split() if stage not in stages]
        for parameter in parameters:
            for name, profile in profiles.items():
                value = _value({**profile, **subject}, parameter)
                if value is None:
                    found.append(f"{where}: profile {name} has no {parameter}")
                elif name == "paper" and entry.value is not None and value != entry.value:
                    found.append(f"{where}: {parameter} is {value!r} in the profile paper, not {entry.value!r}")
    shown = {entry.part for entry in entries if entry.symbols}
    for symbol, text in named.items():
        claims = {part for part in references(text) if part.startswith(("Eq.", "Fig."))} - shown
        if not symbol.startswith(OWN):
            found += [f"{part}: {symbol} names it, but its row has no symbol" for part in sorted(claims)]
    return found


def _names(symbol: str, part: str, named: dict[str, str]) -> bool:
    """Whether a symbol's docstring names the part; for a section its class's or module's docstring will do too."""
    texts = [named.get(symbol, "")]
    if not part.startswith("Eq."):
        texts += [named.get(symbol.rpartition(".")[0], "") if "." in symbol.partition(":")[2] else ""]
        texts += [named.get(symbol.partition(":")[0], "")]
    return any(part in references(text) for text in texts)


def _value(content: Any, path: str) -> Any:
    """What stands at a path; `NULL` at or below a key that is written as null, None where there is no such key."""
    for key in path.split("."):
        if not isinstance(content, dict) or key not in content:
            return None
        if (content := content[key]) is None:
            return NULL
    return content


def page(root: Path) -> str:
    """The page as Markdown: a table for each group of entries, then what else in the code names a part."""
    lines = ["# From the paper to the code", ""]
    lines += ["Written by `python -m cad.papermap` from its list and the docstrings of `cad/`; do not edit.", ""]
    lines += [f"- **{state}**: {meaning}" for state, meaning in STATES.items()]
    lines += ["", NUMBERS_NOTE, ""]
    for title, entries in MAP.items():
        lines += [f"## {title}", "", "| Paper | What it says | Code | Parameters | Stage | State |", "|:--" * 6 + "|"]
        for entry in entries:
            cells = [_code(names) for names in (entry.symbols, entry.parameters)]
            lines.append(f"| {entry.part} | {entry.says} | {' | '.join(cells)} | {entry.stages} | {entry.state} |")
        lines.append("")
    lines += ["## What names a part of the paper in its docstring", "", "| Paper | Code |", "|:--|:--|"]
    named = {symbol: references(text) for symbol, text in docstrings(root).items() if not symbol.startswith(OWN)}
    for part in PARTS:
        if symbols := " ".join(symbol for symbol, parts in named.items() if part in parts):
            lines.append(f"| {part} | {_code(symbols)} |")
    return "\n".join(lines) + "\n"


def _code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split())


def main() -> None:
    """Write the page, or print what is wrong with the map and end with code 1."""
    if found := faults(ROOT, [entry for entries in MAP.values() for entry in entries]):
        sys.exit("\n".join(found))
    (ROOT / PAGE).write_text(page(ROOT), encoding="utf-8")
    print(f"paper map: {PAGE}")


if __name__ == "__main__":
    main()
