"""The real driver on the real kernel, where the other tiers have no room for it."""
