"""The tests, from the bottom up."""
