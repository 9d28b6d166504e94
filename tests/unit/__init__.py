"""Tests without a kernel."""
