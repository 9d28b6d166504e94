"""Where a volume's bytes live. Pure: each backend says which operations make and grow its volumes."""
