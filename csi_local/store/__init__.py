"""Records on disk: atomic, versioned, self-describing."""
