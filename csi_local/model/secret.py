"""A key on its way from whoever has it to the program that needs it."""

from typing import NoReturn, Self


class Secret:
    """Bytes that are shown nowhere: neither printed, formatted, compared, pickled nor copied.

    They are overwritten when the ``with`` that has it ends. What gRPC and the interpreter have copied on the way here
    cannot be overwritten; it goes with the request.
    """

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = bytearray(data)

    def reveal(self) -> bytes:
        """The bytes, for the standard input of a program and nothing else."""
        return bytes(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def forget(self) -> None:
        """Overwrite them."""
        for index in range(len(self._data)):
            self._data[index] = 0
        self._data.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.forget()

    def __repr__(self) -> str:
        return "***"

    def __format__(self, _spec: str) -> str:
        return "***"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


NEWLINE = b"\n"


def without_newline(data: bytes) -> bytes:
    """*data* without the one newline that editors and ``echo`` put at its end: a key is the same from anywhere."""
    return data.removesuffix(NEWLINE)
