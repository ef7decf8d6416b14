"""Times and memory that no layout of a point undercuts, for all points at once."""
