"""csi-sanity, the conformance suite of the Container Storage Interface."""
