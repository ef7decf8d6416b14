"""User files as plain data in which every value knows its file, line and column."""

from planner.documents.document import (
    Document,
    Override,
    load_document,
    option_override,
    parse_document,
    parse_override,
)
from planner.documents.nodes import Data, Node

__all__ = [
    "Data",
    "Document",
    "Node",
    "Override",
    "load_document",
    "option_override",
    "parse_document",
    "parse_override",
]
