"""A profile's settings, composed by Hydra as `dvc exp run -S profile=... -S 'object=[...]'` composes params.yaml.

Hydra is imported where it is called, so that whatever imports this module starts without it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cad.config import Params, check
from cad.errors import UserError


def compose(profile: str, objects: Sequence[str], folder: Path) -> Params:
    """The settings of a profile for these objects (the profile's own or the default ones, if none is named).

    folder: `experiments/`. Raises UserError for a profile or an object that has no file there, and for a fault in them.
    """
    return _composed(profile, objects, folder)[1]


def composed_text(profile: str, objects: Sequence[str], folder: Path) -> str:
    """The same settings as the text of params.yaml, that of DVC to the byte; arguments and errors as for `compose`."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(_composed(profile, objects, folder)[0])


def _composed(profile: str, objects: Sequence[str], folder: Path) -> tuple[Any, Params]:
    """What Hydra composes (interpolations as they are written), and the same resolved and checked."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for group, names in (("profile", [profile]), ("object", objects)):
        for name in names:
            if not (folder / group / f"{name}.yaml").is_file():
                known = ", ".join(sorted(path.stem for path in (folder / group).glob("*.yaml")))
                raise UserError(f"{folder / group / name}.yaml: there is no such {group}; known: {known or 'none'}")
    overrides = [f"profile={profile}", *([f"object=[{','.join(objects)}]"] if objects else [])]
    origin = f"{folder / 'profile' / profile}.yaml"
    try:
        with initialize_config_dir(str(folder.resolve()), version_base=None):
            composed = hydra_compose("config", overrides=overrides)
        values = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as fault:
        raise UserError(f"{origin}: cannot be composed ({str(fault).splitlines()[0]}); correct it") from fault
    if not isinstance(values, dict):
        raise UserError(f"{origin}: holds no mapping; write the settings into it")
    return composed, check({str(key): value for key, value in values.items()}, origin)
