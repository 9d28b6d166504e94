"""One suite for every implementation of `csi_local.host.api.Host`."""
