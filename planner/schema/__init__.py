"""Pydantic models of user files and plan files; each turns into frozen dataclasses before it leaves."""
