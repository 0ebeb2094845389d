"""Reading pickles without running anything: calls and imports that a pickle asks for become inert placeholders.

Python's own unpickler imports what a file names and calls it. This one is an interpreter of the same instructions that
only knows containers, numbers and text. Everything else is an ``Inert``, which has a name and no behaviour, unless
``construct`` makes data from it. Time and memory are bounded by ``MOST_OPERATIONS`` and ``MOST_COPIED``.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

MOST_OPERATIONS = 2_000_000  # the training state of a network with ten thousand tensors takes under a million
MOST_COPIED = 64 * 2**20  # bytes of text and lists that calls copy; a file needs each of its own once
MOST_BITS = 1000  # of a number as a key: Python refuses to print larger ones
LONGEST_NAME = 1000  # characters of what it imports
KEYS = (str, int, float, bool, bytes, type(None))  # hashing a deeply nested tuple would overflow the C stack


class PickleError(ValueError):
    """The bytes are no pickle, or use instructions that no file of weights needs."""


@dataclass(frozen=True, eq=False)
class Inert:
    """Placeholder for a class, a function, or what calling it would have returned."""

    name: str  # "module.name"


Construct = Callable[[str, tuple[Any, ...]], Any]


def read_pickle(file: BinaryIO, construct: Construct, persistent: Callable[[Any], Any]) -> Any:
    """Read one pickle from where ``file`` stands, and leave it right behind that pickle.

    Args:
        file: the bytes.
        construct: called with the name of a callable and its arguments, returns what stands for the result. It must not
            call what it does not know; ``Inert(name)`` stands for anything.
        persistent: called with the persistent ids, by which ``torch.save`` refers to storages. Both functions raise
            ``PickleError`` to refuse the pickle.

    Returns:
        Dictionaries, lists (also for sets), tuples, numbers, text and bytes, and what the two functions returned.
        Containers may contain themselves.

    Raises:
        PickleError: there is no pickle, or it is too long.
    """
    try:
        return _Machine(construct, persistent).run(file)
    except (PickleError, MemoryError, OSError):
        raise
    except Exception as error:  # malformed pickles raise many types, such as IndexError from an empty stack
        raise PickleError(f"it is no pickle ({type(error).__name__})") from error


class _Machine:
    """The stack machine. Its instructions are those of ``pickletools.opcodes`` that ``torch.save`` has ever written."""

    def __init__(self, construct: Construct, persistent: Callable[[Any], Any]) -> None:
        self._construct, self._persistent = construct, persistent
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # stacks under each mark
        self._memo: dict[int, Any] = {}
        self._copied = 0

    def run(self, file: BinaryIO) -> Any:
        for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
            if count == MOST_OPERATIONS:
                raise PickleError(f"its pickle has more than {MOST_OPERATIONS:,} instructions")
            name = operation.name
            if name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _PUSHED:
                self._stack.append(argument)
            elif name == "STOP":
                return self._stack.pop()
            elif (act := _ACTIONS.get(name)) is not None:
                act(self, argument)
            elif name not in ("PROTO", "FRAME"):
                raise PickleError(f"its pickle has the instruction {name}")
        raise PickleError("its pickle has no end")

    def _mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _pop_mark(self, _: Any) -> None:
        self._to_mark()

    def _pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._to_mark()

    def _put(self, place: int | None) -> None:
        self._memo[len(self._memo) if place is None else place] = self._stack[-1]

    def _get(self, place: int) -> None:
        self._stack.append(self._memo[place])

    def _tuple(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append(tuple(items))

    def _list(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append(items)

    def _dict(self, _: Any) -> None:
        items = self._to_mark()
        made: dict[Any, Any] = {}
        _set_items(made, items)
        self._stack.append(made)

    def _last(self, count: int) -> tuple[Any, ...]:
        items = tuple(self._stack[-count:])
        if len(items) != count:
            raise PickleError("its pickle takes from an empty stack")
        del self._stack[-count:]
        return items

    def _append(self, _: Any) -> None:
        _extend(self._stack[-2], [self._stack.pop()])

    def _appends(self, _: Any) -> None:
        items = self._to_mark()
        _extend(self._stack[-1], items)

    def _set_item(self, _: Any) -> None:
        _set_items(self._stack[-3], self._last(2))

    def _set_items(self, _: Any) -> None:
        items = self._to_mark()
        _set_items(self._stack[-1], items)

    def _global(self, name: str) -> None:
        self._stack.append(_named(*name.split(" ", 1)))

    def _stack_global(self, _: Any) -> None:
        module, name = self._last(2)
        self._stack.append(_named(module, name))

    def _call(self, function: Any, arguments: Any) -> None:
        """Push what stands for the result of a call. Arguments that are no tuple are not looked at."""
        name = function.name if isinstance(function, Inert) else type(function).__name__
        given = arguments if isinstance(arguments, tuple) else ()
        if given and isinstance(given[0], str | list | tuple):  # many calls may copy one large argument
            self._copied += len(given[0]) * (1 if isinstance(given[0], str) else 8)
            if self._copied > MOST_COPIED:
                raise PickleError("its pickle copies the same items over and over")
        if name in MAPPINGS:
            made: dict[Any, Any] = {}
            pairs = _items(given)
            if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
                raise PickleError("its pickle makes a dictionary of what are no pairs")
            _set_items(made, [part for pair in pairs for part in pair])
            self._stack.append(made)
        elif name in SETS:
            self._stack.append(_items(given))
        elif name == "_codecs.encode" and given[1:] == ("latin1",) and isinstance(given[0], str):
            self._stack.append(given[0].encode("latin1"))  # bytes, in the protocol that torch.save uses
        else:
            self._stack.append(self._construct(name, given))

    def _reduce(self, _: Any) -> None:
        self._call(*self._last(2))

    def _new_with_keywords(self, _: Any) -> None:
        self._call(*self._last(3)[:2])

    def _object(self, _: Any) -> None:
        function, *items = self._to_mark()
        self._call(function, tuple(items))

    def _build(self, _: Any) -> None:
        """Drop the state of an object: that of containers does not matter, and others are inert."""
        self._stack.pop()

    def _persistent_id(self, _: Any) -> None:
        self._stack.append(self._persistent(self._stack.pop()))


def _items(arguments: tuple[Any, ...]) -> list[Any]:
    """Return the items of a container that is made from at most one list or tuple."""
    return list(arguments[0]) if arguments and isinstance(arguments[0], list | tuple) else []


def _set_items(target: Any, items: Sequence[Any]) -> None:
    """Set alternating keys and values. What has another key than text or a number is left out."""
    if isinstance(target, Inert):
        return
    if not isinstance(target, dict):
        raise PickleError("its pickle sets items of what has none")
    pairs = zip(items[::2], items[1::2], strict=True)
    target.update((key, value) for key, value in pairs if isinstance(key, KEYS) and not _is_huge(key))


def _is_huge(key: Any) -> bool:
    return isinstance(key, int) and key.bit_length() > MOST_BITS


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Inert):
        raise PickleError("its pickle appends to what is no list")


def _named(module: Any, name: Any) -> Inert:
    if not (isinstance(module, str) and isinstance(name, str) and len(module) + len(name) <= LONGEST_NAME):
        raise PickleError("its pickle imports by what is no name")
    return Inert(f"{module}.{name}")


MAPPINGS = ("collections.OrderedDict", "builtins.dict", "__builtin__.dict")
SETS = tuple(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "frozenset", "list"))

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_PUSHED = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark,
    "POP": _Machine._pop,
    "POP_MARK": _Machine._pop_mark,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine._put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine._get),
    "EMPTY_DICT": lambda machine, _: machine._stack.append({}),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda machine, _: machine._stack.append([])),
    "TUPLE": _Machine._tuple,
    **{f"TUPLE{n}": lambda machine, _, n=n: machine._stack.append(machine._last(n)) for n in (1, 2, 3)},  # type: ignore[misc]
    **dict.fromkeys(("LIST", "FROZENSET"), _Machine._list),
    "DICT": _Machine._dict,
    "APPEND": _Machine._append,
    **dict.fromkeys(("APPENDS", "ADDITEMS"), _Machine._appends),
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine._reduce),
    "NEWOBJ_EX": _Machine._new_with_keywords,
    "OBJ": _Machine._object,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent_id,
}
