"""Single kernels as benchmarks run them: what each computes and moves, and how long that takes on any GPU."""
