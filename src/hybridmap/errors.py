"""Mistakes that a user can mend.

The command line prints such an error as one sentence (what was expected, what came, what to try) and leaves with exit code
2; from Python it is an ordinary ``ValueError``.
"""


class UserError(ValueError):
    """A mistake of the caller, told in one sentence that says what was expected, what came and what to try."""
