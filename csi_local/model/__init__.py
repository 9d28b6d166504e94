"""Frozen values and the errors: what every other room speaks, and nothing that touches the machine."""
