"""The errors that a user can mend: the command prints their message, without a traceback, and exits with status 2."""


class UserError(Exception):
    """A mistake in a recipe, a path, a label list or a checkpoint: says what was given, what was expected and how to mend it."""


class BadAudio(Exception):
    """One recording that cannot be used: unreadable, absurdly long or empty. Skipped, counted and named by its reader."""
