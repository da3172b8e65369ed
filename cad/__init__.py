"""CAD: Photorealistic 3D Generation via Adversarial Distillation (Wan et al.), an unofficial reproduction."""
