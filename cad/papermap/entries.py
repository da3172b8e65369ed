"""What realises each section, equation, figure and number of the paper; claims.py holds it to the code."""

from dataclasses import dataclass
from typing import Any

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
          "elevation.score elevation.turn_deg elevation.matcher objects.robot.reference_polar_deg", "input"),
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
MAP = {"Sections": SECTIONS, "Equations": EQUATIONS, "Figures and tables": FIGURES, "Numbers": NUMBERS}
