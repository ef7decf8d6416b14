"""What is asked of a plan: workload, routing of tokens, constraints, objectives."""
