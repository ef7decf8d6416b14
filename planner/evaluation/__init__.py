"""The independent evaluator: whether a layout is legal, and how long its step takes."""
