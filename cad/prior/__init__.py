"""Sec. 3.3: sampling the view-conditioned prior, pruning its poses, refining what is kept."""
