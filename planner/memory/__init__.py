"""The memory of a layout: on every GPU by phase, and on every host."""
