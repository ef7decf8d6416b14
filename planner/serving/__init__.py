"""Serving: what an engine's replicas are, and what is planned for them."""
