"""Which implementation an entry takes: one of the project's own by name, or a plug-in as `module:Name`."""

import re
from collections.abc import Callable

from pydantic_core import PydanticCustomError

PLUGIN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_plugin(kind: str) -> bool:
    """Whether a `kind` names a class of the user's (docs/extending.md)."""
    return PLUGIN.fullmatch(kind) is not None


def one_of(*own: str) -> Callable[[str], str]:
    """A check that a `kind` is one of these names or a plug-in's."""

    def check(kind: str) -> str:
        if kind not in own and not is_plugin(kind):
            listed = ", ".join(f"'{name}'" for name in own)
            raise PydanticCustomError("kind", "input should be {listed} or a plug-in's module:Name", {"listed": listed})
        return kind

    return check


def check_owner(kind: str, settings: object) -> None:
    """ValueError for settings of a plug-in that is not chosen."""
    if settings is not None and not is_plugin(kind):
        raise ValueError(f"settings are for a plug-in, and kind is {kind}: set settings to null")
