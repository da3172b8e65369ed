"""Finished runs in about a megabyte each, and what they show in seconds without training: `cad demo`."""
