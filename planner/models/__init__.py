"""What a model is: its blocks, its operator graph, its parameters; the models that ship with the planner."""
