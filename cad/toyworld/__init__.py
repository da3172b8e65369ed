"""A procedural world with exact ground truth, and the training of the small models of the mini profile ([ours])."""
