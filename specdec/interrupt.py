"""A flag by which any thread ends a call of several rounds behind the round that it is at."""

import ctypes


class Interrupt:
    """Set until it is cleared."""

    def __init__(self) -> None:
        self._flag = ctypes.c_int64(0)

    @property
    def address(self) -> int:
        """Where the core looks; while this object lives."""
        return ctypes.addressof(self._flag)

    @property
    def is_set(self) -> bool:
        return bool(self._flag.value)

    def set(self) -> None:
        self._flag.value = 1

    def clear(self) -> None:
        self._flag.value = 0
