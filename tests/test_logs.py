"""Log lines, as another process writes them."""

import json
import subprocess
import sys

SETUP = """
import asyncio, logging
from appliance import logs
from appliance.errors import ApplianceError, Reason
logs.configure("front")
"""


def logged(code: str) -> list[dict[str, object]]:
    """The lines that this code logs."""
    run = subprocess.run([sys.executable, "-c", SETUP + code], capture_output=True, text=True, check=True)
    assert run.stdout == ""
    return [json.loads(line) for line in run.stderr.splitlines()]


def test_a_line_is_json_with_service_level_time_and_what_was_bound() -> None:
    (line,) = logged('logs.bind(request_id="r-1"); logs.get().info("issued", attempt=2)')
    assert line.pop("timestamp")
    assert line == {"service": "front", "level": "info", "event": "issued", "request_id": "r-1", "attempt": 2}


def test_what_was_bound_stays_with_its_task() -> None:
    lines = logged("""
async def work(name):
    logs.bind(request_id=name)
    await asyncio.sleep(0)
    logs.get().info("done", name=logs.bound("request_id"))
async def main():
    await asyncio.gather(work("a"), work("b"))
    logs.get().info("main", name=logs.bound("request_id"))
asyncio.run(main())
""")
    assert [(line["name"], line.get("request_id")) for line in lines] == [("a", "a"), ("b", "b"), ("", None)]


def test_a_value_that_is_no_plain_one_is_shown_as_its_type() -> None:
    (line,) = logged('logs.get().info("x", key=bytes(32), parts=[b"1", 2], order=object(), text="y" * 9999)')
    assert (line["key"], line["parts"], line["order"]) == ("<bytes>", ["<bytes>", 2], "<object>")
    assert len(str(line["text"])) == 500


def test_a_defect_is_told_by_type_and_place_and_never_by_its_message() -> None:
    (line,) = logged("""
try:
    try:
        int("SECRET")
    except ValueError as error:
        raise RuntimeError("SECRET") from error
except RuntimeError:
    logs.get().exception("defect")
""")
    told = json.dumps(line)
    assert "SECRET" not in told
    assert str(line["exceptions"]).startswith("['RuntimeError at ")
    assert "', 'ValueError at " in str(line["exceptions"])


def test_an_error_of_ours_is_told_as_it_is() -> None:
    (line,) = logged("""
try:
    raise ApplianceError(Reason.TOKEN_FAULT, "The detail.", hint="The hint.")
except ApplianceError as error:
    logs.get().error("failed", exc_info=error)
""")
    assert str(line["exceptions"]).startswith("['TOKEN_FAULT: The detail. The hint. at ")


def test_libraries_warn_in_the_same_form_without_the_values_they_were_given() -> None:
    lines = logged("""
logging.getLogger("library").info("too quiet")
logging.getLogger("library").warning("refused %s\\nmore", "SECRET")
async def failing(): raise ValueError("SECRET")
async def main():
    task = asyncio.ensure_future(failing())
    await asyncio.sleep(0)
asyncio.run(main())
""")
    assert [(line["logger"], line["event"]) for line in lines] == [
        ("library", "refused %s"),
        ("asyncio", "Task exception was never retrieved"),
    ]
    assert "SECRET" not in json.dumps(lines)


def test_warnings_of_python_come_in_the_same_form_without_their_text() -> None:
    (line,) = logged("""
import warnings
warnings.warn_explicit("SECRET", UserWarning, "library.py", 7)
""")
    assert (line["event"], line["level"]) == ("python warning", "warning")
    assert (line["category"], line["place"]) == ("UserWarning", "library.py:7")
    assert "SECRET" not in json.dumps(line)
