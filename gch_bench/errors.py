"""The exceptions that a user's mistake raises. Entry points print their message as one line and exit with code 2."""


class UserError(Exception):
    """A mistake that the user can correct. The message is one line: the name, its rule, the value, and what to do."""

    def __init__(self, message: object) -> None:
        super().__init__(" ".join(str(message).split()))


class FieldError(UserError, ValueError):
    """A value that breaks the rule of its field, such as `gamma must be >= 0, got -2`.

    It is a ValueError, too, which is what callers of the library from Python expect.

    Args:
        field: the field's name, without the group that it belongs to.
        problem: what follows the name in the message.
    """

    def __init__(self, field: str, problem: str) -> None:
        self.field, self.problem = field, problem
        super().__init__(f"{field} {problem}")

    def __reduce__(self) -> tuple[type["FieldError"], tuple[str, str]]:  # lets a worker process send the error
        return type(self), (self.field, self.problem)

    def in_group(self, group: str) -> "FieldError":
        """The same error with the field's whole name, as the user types it: `noise.gamma` for the field gamma of noise."""
        return type(self)(f"{group}.{self.field}" if group else self.field, self.problem)
