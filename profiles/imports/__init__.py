"""Measurements that other programs wrote, as runs of a profile."""
