"""From a model, GPUs and traffic to a serving plan."""
