"""The points of the search: every combination of degrees and uses that breaks no rule."""
