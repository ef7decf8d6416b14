"""The model that an option or argument names, outside of any spec."""

from pathlib import Path

from planner.models.specs import ModelSpec


def read_named_model(name: str, *, where: str) -> ModelSpec:
    """Return the model of a bundled name or a path as seen from here; `where` is what messages call its place.

    Raises:
        InputError: When there is no such model, or it cannot be read.
    """
    from planner.documents import Document
    from planner.documents.nodes import scalar_node
    from planner.errors import Location
    from planner.schema.model import read_model

    document = Document(file=where, root=scalar_node(name, Location(file=where)))
    return read_model(name, document=document, path=(), base=Path())
