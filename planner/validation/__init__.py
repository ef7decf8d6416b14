"""Configurations that users have, judged by the rules: files in, findings out."""
