"""Errors of the cost layer."""


class ProfileError(Exception):
    """Base of every error that the cost layer raises on purpose."""


class CoverageError(ProfileError):
    """A cost is needed that no table and no formula gives.

    Args:
        operation: What was to be priced, with its shape.
        missing: The figure or table that is missing.
        remedy: How to supply it.
    """

    def __init__(self, *, operation: str, missing: str, remedy: str) -> None:
        super().__init__(f"{operation} cannot be priced: {missing}\n{remedy}")
        self.operation = operation
        self.missing = missing
        self.remedy = remedy


class CatalogueError(ProfileError):
    """A name or a figure that the hardware catalogue does not hold."""


class ProfileFileError(ProfileError):
    """A file of a profile that cannot be used.

    Args:
        file: Its path.
        line: Line in it, from 1; None for the whole.
        message: What is wrong, and with which column.
        remedy: What to do.
    """

    def __init__(self, *, file: str, line: int | None, message: str, remedy: str) -> None:
        place = file if line is None else f"{file}:{line}"
        super().__init__(f"{place}: {message}\n{remedy}")
        self.file = file
        self.line = line
        self.message = message
        self.remedy = remedy
