"""CIFAR's Python batches read as data. A pickle is a program, and it is never run.

A small machine follows the opcodes that a dictionary of lists, strings, numbers and NumPy arrays is
made of, as Python 2 and 3 write them (protocols 2 to 4). Nothing is imported or called: NumPy's own
functions are known by name, and any other name or opcode is refused. Of an array only the place of
its raw bytes is kept, so that an image is a slice of the file.
"""

import math
import pickletools
import warnings
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

from pipeline.spec import Misuse

MAX_BYTES = 256 << 20
"""CIFAR-100's train batch, the largest, has 155 MB."""
MAX_OPCODES = 4_000_000
"""CIFAR-100's train batch has about 200,000."""

_REMEDY = "get the archive again from https://www.cs.toronto.edu/~kriz/cifar.html"
_ARRAY = "numpy.ndarray"
_DTYPE = "numpy.dtype"
_NEW_ARRAY = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_ENCODE = "_codecs.encode"
_KNOWN = frozenset({_ARRAY, _DTYPE, _ENCODE, *_NEW_ARRAY})
_RAW_HEADER = {
    "BINSTRING": 5,
    "SHORT_BINSTRING": 2,
    "BINBYTES": 5,
    "SHORT_BINBYTES": 2,
    "BINBYTES8": 9,
}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
)


@dataclass
class Array:
    """A NumPy array of uint8 in C order: its shape, and where its bytes start in the file."""

    shape: tuple[int, ...] = ()
    start: int = -1


class _Raw(NamedTuple):
    """A byte string that stays in the file."""

    start: int
    size: int


class _Name(NamedTuple):
    """A name that the pickle would import."""

    name: str


@dataclass
class _Dtype:
    text: str


class _Refused(ValueError):
    """What the pickle holds has no place in a batch."""


class Pickled:
    """The dictionary that a pickle holds.

    Args:
        data: the whole file.
        what: its name, for errors.

    Raises:
        Misuse: it is no dictionary of plain data, or damaged.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._what = data, what
        self._values = _Machine(data, what).run()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def array(self, key: str) -> Array:
        """Return where the array `key` lies."""
        value = self._get(key)
        if not isinstance(value, Array) or value.start < 0:
            raise self._wrong(key, "an array")
        return value

    def integer(self, key: str) -> int:
        """Return the number `key`."""
        value = self._get(key)
        if type(value) is not int:
            raise self._wrong(key, "a number")
        return value

    def integers(self, key: str) -> list[int]:
        """Return the list of numbers `key`."""
        numbers = [value for value in self._list(key) if type(value) is int]
        if len(numbers) != len(self._list(key)):
            raise self._wrong(key, "a list of numbers")
        return numbers

    def texts(self, key: str) -> list[str]:
        """Return the list of strings `key`."""
        try:
            return [_text(self._data, value) for value in self._list(key)]
        except _Refused:
            raise self._wrong(key, "a list of strings") from None

    def _get(self, key: str) -> object:
        if key not in self._values:
            has = ", ".join(sorted(self._values)[:8])
            raise Misuse(f"{self._what}: it has no field '{key}', only {has}; {_REMEDY}")
        return self._values[key]

    def _list(self, key: str) -> list[object]:
        value = self._get(key)
        if not isinstance(value, list):
            raise self._wrong(key, "a list")
        return value

    def _wrong(self, key: str, expected: str) -> Misuse:
        return Misuse(f"{self._what}: its field '{key}' is not {expected}; {_REMEDY}")


class _Machine:
    """The stack and the memo of a pickle, without its power."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._what = data, what
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}

    def run(self) -> dict[str, object]:
        """Follow all opcodes and return the dictionary they make."""
        at: int = 0
        name = "PROTO"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # escapes in a string that is refused next
                for count, (opcode, argument, pos) in enumerate(pickletools.genops(self._data)):
                    at, name = pos or 0, opcode.name
                    if count >= MAX_OPCODES:
                        raise _Refused(f"it has more than {MAX_OPCODES:,} opcodes")
                    if name != "STOP":
                        self._step(name, argument, at)
            return self._result(at)
        except IndexError:
            problem = f"{name} finds nothing on the stack"
        except (ValueError, OverflowError) as error:
            problem = str(error)
        raise Misuse(
            f"{self._what}: not a batch of CIFAR: byte {at}: {problem}; nothing in it was run; "
            f"{_REMEDY}"
        )

    def _result(self, at: int) -> dict[str, object]:
        if at + 1 != len(self._data):
            raise _Refused(f"{len(self._data) - at - 1:,} bytes follow its end")
        top = self._stack.pop()
        if self._stack or not isinstance(top, dict):
            raise _Refused("it is not one dictionary")
        return top

    def _step(self, name: str, argument: object, at: int) -> None:
        """Do what one opcode does to plain data."""
        stack = self._stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _RAW_HEADER:
            start = at + _RAW_HEADER[name]
            assert isinstance(argument, str | bytes)  # a Python 2 string comes as latin-1
            stack.append(_Raw(start, len(argument)))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            number = argument if isinstance(argument, int) else len(self._memo)
            self._memo[number] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            assert isinstance(argument, int)
            if argument not in self._memo:
                raise _Refused(f"entry {argument} of its memo is missing")
            stack.append(self._memo[argument])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            self._push_tuple(self._pop(_TUPLES[name]))
        else:
            self._step_rarely(name, argument)

    def _step_rarely(self, name: str, argument: object) -> None:
        match name:
            case "PROTO":
                if argument not in (2, 3, 4):
                    raise _Refused(f"protocol {argument}, expected 2 to 4")
            case "FRAME":
                pass
            case "MARK":
                self._marks.append(len(self._stack))
            case "TUPLE":
                self._push_tuple(self._pop_marked())
            case "EMPTY_LIST":
                self._stack.append([])
            case "EMPTY_DICT":
                self._stack.append({})
            case "APPEND":
                self._append(self._pop(1))
            case "APPENDS":
                self._append(self._pop_marked())
            case "SETITEM":
                self._set_items(self._pop(2))
            case "SETITEMS":
                self._set_items(self._pop_marked())
            case "GLOBAL":
                self._push_name(str(argument).replace(" ", ".", 1))
            case "STACK_GLOBAL":
                names = [_text(self._data, value) for value in self._pop(2)]
                self._push_name(".".join(names))
            case "REDUCE":
                function, arguments = self._pop(2)
                self._stack.append(_reduce(function, arguments, self._data))
            case "BUILD":
                target, state = self._pop(2)
                self._stack.append(target)
                _build(target, state, self._data)
            case _:
                raise _Refused(f"opcode {name} has no place in plain data")

    def _pop(self, count: int) -> list[object]:
        if count > len(self._stack):
            raise IndexError
        start = len(self._stack) - count
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _pop_marked(self) -> list[object]:
        return self._pop(max(len(self._stack) - self._marks.pop(), 0))

    def _push_tuple(self, values: list[object]) -> None:
        self._stack.append(tuple(values))

    def _push_name(self, name: str) -> None:
        if name not in _KNOWN:
            raise _Refused(f"it names {name[:80]!r}, which is no part of a NumPy array")
        self._stack.append(_Name(name))

    def _append(self, values: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise _Refused("it appends to what is no list")
        target.extend(values)

    def _set_items(self, values: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise _Refused("it sets an item of what is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_text(self._data, key)] = value


def _text(data: bytes, value: object) -> str:
    """Return a string, be it text or the byte string of Python 2."""
    if isinstance(value, _Raw):
        return data[value.start : value.start + value.size].decode("latin-1")
    if isinstance(value, str):
        return value
    raise _Refused("it has something else where a string is expected")


def _reduce(function: object, arguments: object, data: bytes) -> object:
    """Return what a known function would make of its arguments."""
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise _Refused("it calls what is no function of NumPy")
    if function.name in _NEW_ARRAY and arguments[:1] == (_Name(_ARRAY),):
        return Array()
    if function.name == _DTYPE and arguments:
        return _Dtype(_text(data, arguments[0]))
    if function.name == _ENCODE and len(arguments) == 2 and arguments[1] == "latin1":
        return _text(data, arguments[0])  # how Python 3 writes bytes in protocol 2
    raise _Refused(f"it calls {function.name} with arguments that no array has")


def _build(target: object, state: object, data: bytes) -> None:
    """Give an array its shape and its bytes; what a dtype of one byte adds changes nothing."""
    if isinstance(target, _Dtype):
        return
    if not isinstance(target, Array) or not isinstance(state, tuple) or len(state) != 5:
        raise _Refused("it sets the state of what is no array")
    _, shape, dtype, is_fortran, raw = state
    if not isinstance(dtype, _Dtype) or dtype.text not in ("u1", "uint8"):
        raise _Refused("its array is not of type uint8")
    if is_fortran != 0:
        raise _Refused("its array is stored by columns; use the binary archive instead")
    if isinstance(raw, str):
        raise _Refused("its array is stored as text (protocol 2 of Python 3)")
    if not _is_shape(shape):
        raise _Refused("its array has no shape of rows and columns")
    if not isinstance(raw, _Raw) or math.prod(shape) != raw.size:
        raise _Refused(f"its array of shape {shape} does not have as many bytes")
    target.shape, target.start = shape, raw.start


def _is_shape(value: object) -> TypeGuard[tuple[int, ...]]:
    """Tell whether a value is one or two counts that a file can hold."""
    if not isinstance(value, tuple) or len(value) not in (1, 2):
        return False
    return all(type(count) is int and 0 <= count <= MAX_BYTES for count in value)
