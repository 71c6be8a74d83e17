"""The one exception a user's mistake raises; entry points print it as one line and exit with code 2."""


class UserError(Exception):
    """A mistake the user can correct. The message is one line: name, rule, value, what to do."""

    def __init__(self, message: object) -> None:
        super().__init__(" ".join(str(message).split()))
