"""The driver under a mixed load for as long as one likes, with faults, and held to all that it has answered."""
