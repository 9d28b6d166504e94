"""Tests under a second kernel, User-Mode Linux, for what this machine's own kernel may lack."""
