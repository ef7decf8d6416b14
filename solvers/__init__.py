"""Given numbers, choose."""
