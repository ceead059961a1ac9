"""A value that a settings file declares and the domain refuses; the decoder of the file adds the path to it."""

import re
from typing import Final

from appliance.errors import ApplianceError, Reason

SETTING_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,30}[a-z0-9]")
"""Names of SIM issuers and profiles: they become file names, resource names and log values."""


class SettingError(ApplianceError, ValueError):
    """SETTINGS_INVALID for one field. A ValueError too, so that msgspec reports where in the file the value stands."""

    def __init__(self, field: str, detail: str, hint: str) -> None:
        super().__init__(Reason.SETTINGS_INVALID, detail, hint=hint, field=field)


def check_setting_name(name: str) -> None:
    """Refuse a name that is not 2 to 32 lower-case letters, digits and inner hyphens, a letter first.

    Raises:
        SettingError: for the field `name`.
    """
    if not SETTING_NAME.fullmatch(name):
        raise SettingError(
            "name",
            f"The name {name!r} has not the form of a name.",
            "Use 2 to 32 lower-case letters, digits and hyphens; begin with a letter, end with a letter or digit.",
        )
