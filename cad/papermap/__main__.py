"""Write the page of the map, or print what is wrong with the map and end with code 1."""

import sys
from pathlib import Path

from cad.papermap.claims import faults
from cad.papermap.entries import MAP
from cad.papermap.page import PAGE, page

ROOT = Path(__file__).parents[2]

if found := faults(ROOT, [entry for entries in MAP.values() for entry in entries]):
    sys.exit("\n".join(found))
(ROOT / PAGE).write_text(page(ROOT), encoding="utf-8")
print(f"paper map: {PAGE}")
