"""Messages beside a good one: each field in turn at the edges of its type, and left out."""

from collections.abc import Iterator
from typing import Any, Final, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

EDGES: Final[dict[int, tuple[Any, ...]]] = {
    FieldDescriptor.TYPE_UINT32: (1, 0x7F, 0x80, 0xFFFFFF, 0x1000000, (1 << 32) - 1),
    FieldDescriptor.TYPE_INT32: (1, -1, (1 << 31) - 1),
    FieldDescriptor.TYPE_UINT64: (1, 1 << 32, (1 << 64) - 1),
    FieldDescriptor.TYPE_INT64: (1, -1, 253_402_300_800, 1 << 62, -(1 << 63)),
    FieldDescriptor.TYPE_ENUM: (1, 3, 99),
    FieldDescriptor.TYPE_BOOL: (True,),
    FieldDescriptor.TYPE_STRING: ("A", "\x00", "ア" * 40, "%" * 70, "A" * 300),
    FieldDescriptor.TYPE_BYTES: (b"\x00", b"\xff" * 10, bytes(21), bytes(1500)),
}
"""Values by type, besides the default; among the numbers the first second of the year 10000."""


def beside(message: M) -> Iterator[M]:
    """Copies of the message with one field changed, also inside of its fields."""
    for field in message.DESCRIPTOR.fields:
        for value in (None, *_others(field, getattr(message, field.name))):
            copy = type(message)()
            copy.CopyFrom(message)
            copy.ClearField(field.name)
            if isinstance(value, list):
                getattr(copy, field.name).extend(value)
            elif isinstance(value, Message):
                getattr(copy, field.name).CopyFrom(value)
            elif value is not None:
                setattr(copy, field.name, value)
            yield copy


def _others(field: Any, value: Any) -> Iterator[Any]:
    if field.message_type and field.is_repeated:
        for at, item in enumerate(value):
            yield from ([*value[:at], changed, *value[at + 1 :]] for changed in beside(item))
    elif field.message_type:
        yield from beside(value)
    elif field.is_repeated:
        yield [*value] * 2
    else:
        yield from EDGES[field.type]
