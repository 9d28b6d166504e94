"""What is in deploy/: the chart, the kustomize base and the examples. Needs Helm: make tools."""
