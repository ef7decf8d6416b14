"""Damaged inputs of every kind against every command: nothing breaks, hangs, is half written or goes astray."""
