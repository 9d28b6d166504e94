"""The driver in a real Kubernetes: a control plane and nodes on this machine, and what a user does with it."""
