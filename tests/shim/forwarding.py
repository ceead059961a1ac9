"""The shim's functions, one for each that the PKCS#11 header declares: what is passed on, and what is recorded of it.

What is recorded follows from a parameter's type, so no function is forgotten; a type that is not known is an error.
"""

import re
from collections.abc import Iterator
from typing import Final

WRITTEN_BY_HAND: Final = {"C_Initialize", "C_GetFunctionList"}

NUMBERS: Final = {
    "ck_flags_t",
    "ck_mechanism_type_t",
    "ck_session_handle_t",
    "ck_slot_id_t",
    "ck_user_type_t",
    "unsigned char",
    "unsigned long",
}
UNRECORDED: Final = {
    "ck_notify_t",
    "struct ck_info *",
    "struct ck_mechanism_info *",
    "struct ck_session_info *",
    "struct ck_slot_info *",
    "struct ck_token_info *",
    "void *",
}
BUFFERS: Final = {"ck_mechanism_type_t *", "ck_slot_id_t *", "unsigned char *"}
Parameter = tuple[str, str]


def forwarding(header: str) -> str:
    """The text of forwarding.h, from the header's text.

    Raises:
        ValueError: a function has a parameter of a type that has no rule here.
    """
    declared = re.findall(r"^_CK_DECLARE_FUNCTION \((\w+),\s*\((.*?)\)\);", header, re.MULTILINE | re.DOTALL)
    written = [_function(name, parameters) for name, parameters in declared if name not in WRITTEN_BY_HAND]
    initialisers = ", ".join(f".{name} = {name}" for name, _ in declared)
    return "\n".join(
        [*written, f"#define FUNCTIONS {initialisers}", f"#define FUNCTION_COUNT {len(declared)}", ""],
    )


def _function(name: str, text: str) -> str:
    parameters = [_parameter(part) for part in text.split(",")]
    records = list(_records(name, parameters))
    before, after = (" ".join(f"put_{put};" for at, put in records if at == when) for when in ("before", "after"))
    arguments = ", ".join(parameter for _, parameter in parameters)
    return f"FORWARD({name}, ({text}), ({arguments}), {before}, {after})"


def _parameter(text: str) -> Parameter:
    kind, star, name = re.fullmatch(r"\s*(.*?)\s*(\**)\s*(\w+)\s*", text, re.DOTALL).groups()  # type: ignore[union-attr]  # the header's are
    return f"{kind} {star}".strip(), name


def _records(function: str, parameters: list[Parameter]) -> Iterator[tuple[str, str]]:
    for (kind, name), (following, following_name) in zip(parameters, [*parameters[1:], ("", "")], strict=True):
        if kind == "struct ck_attribute *" and function == "C_GetAttributeValue":
            yield "before", f"asked(&call, {name}, {following_name})"
            yield "after", f"outcome(&call, {name}, {following_name})"
        elif kind == "struct ck_attribute *":
            yield "before", f'template(&call, "{name}", {name}, {following_name})'
        elif kind == "struct ck_mechanism *":
            yield "before", f"mechanism(&call, {name})"
        elif kind == "ck_object_handle_t":
            yield "before", f'object(&call, "{name}", {name})'
        elif kind == "ck_object_handle_t *" and function == "C_FindObjects":
            yield "after", f"found(&call, {name}, object_count)"
        elif kind in {"ck_object_handle_t *", "ck_session_handle_t *"}:
            yield "after", f'made(&call, "{name}", {name})'
        elif kind in NUMBERS:
            yield "before", f'number(&call, "{name}", {name})'
        elif kind == "unsigned long *":
            yield "after", f'length(&call, "{name}", {name})'
        elif kind in BUFFERS and following == "unsigned long *":
            yield "before", f"query(&call, {name})"
        elif kind not in UNRECORDED | BUFFERS:
            raise ValueError(f"{function}: no rule for {kind}{name}")
