"""A fuzzer over every RPC, with the real driver on the real kernel."""
