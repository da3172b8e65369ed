import os
from collections.abc import Callable

import pytest


class Kills:
    """Runs an action in a child process that dies, without any clean-up, just before its n-th rename."""

    def before_rename(self, n: int, action: Callable[[], object]) -> bool:
        """Whether the child was killed; False once the action makes fewer than n renames."""
        child = os.fork()
        if child == 0:
            rename, left = os.replace, [n]

            def replace(source, target):
                left[0] -= 1
                if left[0] == 0:
                    os._exit(9)
                rename(source, target)

            os.replace = replace
            try:
                action()
            except BaseException:
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9), "the action failed by itself"
        return code == 9


@pytest.fixture
def kills() -> Kills:
    return Kills()
