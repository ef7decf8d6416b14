"""Predictions held against measurements: read the rows, predict each, score them.

- `measurements`: a CSV file -> rows of one kind, recognised by its columns.
- `stacks`, `machines`, `models`, `tested_models`, `runs`: a row of a training run -> the model, cluster, workload and
  layout that it describes, and every assumption that filled an empty cell.
- `kept`: what the modules of some stacks keep for backward.
- `training`, `operations`: a row -> its prediction, or why there is none.
- `serving_rows`, `serving`: a row of a serving run -> the engine that it describes -> its prediction.
- `serving_exclusions`, `serving_scores`, `serving_fit`: which published serving runs count, how good predictions of
  them are, and the fit of the engines' constants.
- `scores`: predictions beside measurements -> error, rank correlation, regret, out-of-memory scores.
"""
