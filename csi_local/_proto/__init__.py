"""Generated from proto/ by scripts/gen_proto.py; imported by csi_local.rpc only."""
