"""The map from the paper to the code: `python -m cad.papermap` checks it and writes docs/paper-map.md."""
