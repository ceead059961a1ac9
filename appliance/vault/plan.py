"""`python -m appliance.vault.plan --config FILE`: tells the supervisor, which reads no settings, what it needs of them.

One JSON object on stdout: how many vaults, and how long a module call may take, by kind. Settings that cannot be used
are found here, before anybody is asked for a PIN.
"""

import argparse
import json
import sys
from pathlib import Path

from appliance import config
from appliance.errors import ApplianceError
from appliance.supervisor import FINAL


def main() -> int:
    """Prints the plan."""
    parser = argparse.ArgumentParser(prog="python -m appliance.vault.plan", description=main.__doc__)
    parser.add_argument("--config", type=Path, required=True)
    try:
        vault = config.load(parser.parse_args().config).vault
    except ApplianceError as error:
        sys.stderr.write(f"appliance vaults: {error}\n")
        return FINAL
    sys.stdout.write(json.dumps({"count": vault.count, "limits": dict(vault.limits)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
