"""CSI in and out: the only room that knows protobuf and gRPC."""
