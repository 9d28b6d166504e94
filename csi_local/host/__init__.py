"""The only room that touches the kernel or runs a program."""
