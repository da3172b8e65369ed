"""The paper's own numbers, marked as the paper's: they stand beside ours and are never substituted for them."""

# Table 1: method -> (image L/14, image B/32, text L/14, text B/32); 100 x cosine under OpenAI's CLIP weights.
TABLE1 = {
    "DreamFusion": (65.71, 72.61, 24.53, 28.81),
    "Zero-1-to-3": (68.10, 77.42, 21.35, 27.90),
    "ProlificDreamer": (72.72, 74.46, 24.51, 29.39),
    "Magic123": (75.61, 84.02, 23.95, 29.89),
    "CAD": (82.56, 89.16, 25.32, 29.81),
}
SCORERS = ("ViT-L/14", "ViT-B/32")

# Which of our scorers are the paper's: (kind, model without its commit, pretrained) -> the paper's name. Any other has
# its own column.
SAME_SCORER = {
    ("open_clip", "timm/vit_large_patch14_clip_224.openai", None): "ViT-L/14",
    ("open_clip", "timm/vit_base_patch32_clip_224.openai", None): "ViT-B/32",
    ("open_clip", "ViT-L-14-quickgelu", "openai"): "ViT-L/14",
    ("open_clip", "ViT-B-32-quickgelu", "openai"): "ViT-B/32",
    ("transformers", "openai/clip-vit-large-patch14", None): "ViT-L/14",
    ("transformers", "openai/clip-vit-base-patch32", None): "ViT-B/32",
}
