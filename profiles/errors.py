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
