"""A machine in memory: `csi_local.host.api.Host` without a kernel."""
