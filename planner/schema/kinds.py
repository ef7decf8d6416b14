"""Which files have a JSON Schema, and in which drafts."""

from enum import StrEnum


class Draft(StrEnum):
    """Drafts of JSON Schema."""

    DRAFT_07 = "draft-07"
    DRAFT_2020_12 = "2020-12"


class Kind(StrEnum):
    """Files that have a schema."""

    SPEC = "spec"
    MODEL = "model"
    CLUSTER = "cluster"
    WORKLOAD = "workload"
    PLAN = "plan"
