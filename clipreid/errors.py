"""The one exception that speaks to the user."""


class UserError(ValueError):
    """Something the person at the keyboard can mend.

    The message says what was wrong, where (the file, flag or value), and what to do. Recipes and the
    `clipreid` command print it without a traceback and exit with status 2; library callers can catch it
    as a `ValueError`.
    """
