"""Section 3.2: adversarial distillation of the refined prior into a 3D generator, in two stages."""
