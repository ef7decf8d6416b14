"""Serving: what an engine's replicas are, what their steps cost, and what becomes of requests.

- `formats`, `engines`, `grouped`: number formats by engines' words; engines' policies and constants; expert kernels.
- `rank_operators`: a model's operator graph -> what one rank of an engine holds and runs.
- `exchange`, `attention_times`, `context_parallel`, `step_tables`, `step_costs`, `prices`: that -> seconds of a step.
- `measured`, `measured_kernels`, `measured_attention`, `source_fractions`: the same where the GPU was measured, and how
  much of a step that is.
- `speculation`: what a draft's guesses give.
- `placed_experts`, `reached_experts`: what part of all choices of experts each rank gets; how many a step reaches.
- `balancer`: what moving experts takes.
- `ledger`: the memory of a GPU -> tokens of cache, and whether it fits.
- `traffic`, `steady`, `simulate`: requests -> times, in closed form and step by step.
- `files`: a serving layout -> the files that start it.
"""
