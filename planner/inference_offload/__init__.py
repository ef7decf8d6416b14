"""Offline inference of a model that its GPU does not hold: what lies where, and who works on it."""
