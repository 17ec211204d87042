"""Damaged input of every kind through every command."""
