"""Use cases, one file each: lock → load → observe → plan → execute → save."""
