"""The one exception that a user can cause."""


class UserError(Exception):
    """A fault in what the user gave: one line that names the file or field, what is wrong and what to do.

    The command line prints it without a traceback and exits with code 2. Bugs are never wrapped in it.
    """
