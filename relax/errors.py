"""The one error that is shown to people without a traceback."""


class UserError(ValueError):
    """A mistake in what the user gave: the rule, the value received, what to change, in one line.

    The command line prints its message and exits with 2; from Python it is an ordinary ``ValueError``.
    """
