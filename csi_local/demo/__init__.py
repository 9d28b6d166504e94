"""``csi-local demo``."""
