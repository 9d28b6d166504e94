"""Black-box tests of the rules that csi-sanity does not test."""
