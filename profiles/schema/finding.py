"""Findings of our own checks: plain messages, each with the field that is to be changed."""

from typing import NoReturn

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

Place = tuple[str | int, ...]


def reject(message: str) -> NoReturn:
    """Raise the finding that `message` says of the value being validated.

    Raises:
        PydanticCustomError: Always; it is a ValueError, and pydantic shows its message without a prefix.
    """
    # The message is passed as a value, because pydantic fills braces in the template.
    raise PydanticCustomError("hardware", "{message}", {"message": message})


def fail(title: str, place: Place, message: str) -> NoReturn:
    """Raise the finding that `message` says of the field at `place`, counted from the model that checks.

    Raised inside a pydantic validator, it keeps its place below the model's own.

    Raises:
        ValidationError: Always.
    """
    error = PydanticCustomError("hardware", "{message}", {"message": message})
    raise ValidationError.from_exception_data(title, [InitErrorDetails(type=error, loc=place, input=None)])
