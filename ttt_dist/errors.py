"""The one exception that a user is meant to read."""


class UserError(ValueError):
    """Something the user can put right: one line that names the place (file and line, or key) and the remedy."""
