"""The installed program as units and images call it."""

import contextlib
import io
import re

from appliance.cli import COMMANDS, main

PROGRAM = "/opt/jpki/bin/appliance"


def check(command: str, *arguments: str) -> None:
    """Fails where there is no such command, or where it lacks an option."""
    assert command in COMMANDS
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        main([command, "--help"])
    for option in (word for word in arguments if word.startswith("-")):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", told.getvalue()), f"{command} has no {option}"
