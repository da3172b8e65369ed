"""What stages hand to each other: each artefact is written atomically, and loaded by one class that checks it.

Importing this package imports no torch; `Checkpoint` and the `poses` of caches and orbits do when they are used.
"""

from cad.artifacts.cache import PriorCache, PriorCacheWriter
from cad.artifacts.checkpoint import Checkpoint
from cad.artifacts.files import digest, read_json, read_parquet, write_atomic, write_json, write_parquet
from cad.artifacts.images import contact_sheet, read_image, write_image, write_video
from cad.artifacts.inputs import InputArtifact
from cad.artifacts.orbit import Orbit, OrbitWriter
from cad.artifacts.workspace import workspace

__all__ = [
    "Checkpoint",
    "InputArtifact",
    "Orbit",
    "OrbitWriter",
    "PriorCache",
    "PriorCacheWriter",
    "contact_sheet",
    "digest",
    "read_image",
    "read_json",
    "read_parquet",
    "workspace",
    "write_atomic",
    "write_image",
    "write_json",
    "write_parquet",
    "write_video",
]
