"""Decisions, as pure functions: (request, record, what was observed) → operations, or an error."""
