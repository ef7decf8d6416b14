"""States, weights and activations in host memory or on drives: what goes there, and what that takes."""
