"""Measurements of the driver, never judgements: `make bench`."""
