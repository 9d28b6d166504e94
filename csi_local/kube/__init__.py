"""The Kubernetes API: custom resources, what they say, and who carries it out."""
