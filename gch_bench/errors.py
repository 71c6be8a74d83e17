"""The exceptions that a user's mistake raises; entry points print them as one line and exit with code 2."""


class UserError(Exception):
    """A mistake the user can correct. The message is one line: name, rule, value, what to do."""

    def __init__(self, message: object) -> None:
        super().__init__(" ".join(str(message).split()))


class FieldError(UserError, ValueError):
    """A value that breaks the rule of its field, such as `gamma must be >= 0, got -2`. Also a ValueError, for use from Python.

    Args:
        field: the field's name, without the group that it belongs to.
        problem: the rest of the sentence.
    """

    def __init__(self, field: str, problem: str) -> None:
        self.field, self.problem = field, problem
        super().__init__(f"{field} {problem}")

    def __reduce__(self) -> tuple[type["FieldError"], tuple[str, str]]:  # an error of a worker process is pickled
        return FieldError, (self.field, self.problem)

    def in_group(self, group: str) -> "FieldError":
        """The same error with the field's whole name, as the user types it: `noise.gamma` for the field gamma of noise."""
        return FieldError(f"{group}.{self.field}" if group else self.field, self.problem)
