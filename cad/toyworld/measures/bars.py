"""The bars of the small models, each written once; what says [ours] is not a goal of the project but a guard."""

from cad.toyworld.measures.table import above_baseline, at_least, at_most, below_baseline, between

RETRIEVAL = at_least(0.8)  # share of pictures that find their caption
RECONSTRUCTION = at_least(28)  # dB over the foreground
RECONSTRUCTED_COLORS = at_most(5)  # [ours] CIEDE2000, a third of what a synthesised view may be off
VIEW_RECONSTRUCTION = above_baseline(2.5)  # dB more than copying the reference
VIEW_PERCEPTION = below_baseline()  # LPIPS, against copying the reference
VIEW_SILHOUETTE = at_least(0.8)  # median IoU
VIEW_COLORS = at_most(15)  # median CIEDE2000
SIDES = at_least(0.9)  # share of samples on the right side
FAILURES = between(0.1, 0.6)  # share of poses: pruning needs bad ones to find and good ones to keep
REFINED_SILHOUETTE = at_least(0.85)  # median IoU
DIVERSITY = at_least(3)  # LPIPS of draws over that of raw samples
DEPTH = below_baseline()  # [ours] relative error, against one depth for each view
CONTROLLED_SILHOUETTE = above_baseline(0.05)  # [ours] median IoU, against no control
