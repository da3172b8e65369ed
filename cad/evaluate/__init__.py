"""Section 4: the 120-frame orbit, its CLIP scores, and the controls that should fail."""
