"""`appliance hsm check`: examines the token in use, with the PIN, beside vaults that run or without them.

It makes throwaway session objects alone; of the long-lived keys it reads attributes and check values, as a vault does.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from appliance import config, supervisor
from appliance.hsm.check.attacks import ATTACKS
from appliance.hsm.check.examination import Order, balance
from appliance.hsm.check.process import LIMIT_SECONDS, examine
from appliance.hsm.check.report import document, show
from appliance.hsm.orders import ModuleParameters
from appliance.pin import PinUnavailable, add_pin_options, take_pin, wipe

_EPILOG = """exit status:
  0  suite 01 runs, the declared keys are right, and no attack is possible but accepted ones and those called inherent,
     which PKCS #11 itself permits to whoever has the PIN, on every module that suite 01 can run on
  1  something is wrong: settings, PIN, token, a key or check value, a mechanism, a module that crashes or hangs
  2  the command was called wrongly
  3  vaults can serve, but an attack is possible, or not excluded, that modules and their settings can close

A script that should hear of news alone accepts what is known: --accept copy-weaker --accept wrap-decrypt. Only attacks
can be accepted; what keeps a vault from starting cannot.

attacks:
"""


def main(argv: Sequence[str]) -> int:
    """Runs the examination; answers its exit status.

    Raises:
        ApplianceError: what stood in the way of it.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    bare = [option is not None for option in (arguments.module, arguments.token)]
    if any(bare) if arguments.config else not all(bare):
        parser.error("name the token: either --config, or --module and --token")
    if arguments.limit < 1:
        parser.error("a step needs a second at least")
    supervisor.harden()
    order = _bare(arguments) if arguments.config is None else _declared(arguments.config)
    try:
        pin = take_pin(arguments)
    except PinUnavailable as error:
        sys.stderr.write(f"appliance hsm: {error}\n")
        return 1
    try:
        findings = balance(examine(order, pin, limit=arguments.limit))
    finally:
        wipe(pin)
    told = document(findings, arguments.accept, declared=arguments.config is not None)
    if arguments.json:
        sys.stdout.write(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    else:
        show(told, sys.stdout)
    return int(told["status"])


def _bare(arguments: argparse.Namespace) -> Order:
    return Order(ModuleParameters(str(arguments.module), arguments.token, "", arguments.arguments))


def _declared(path: Path) -> Order:
    settings = config.load(path)
    os.environ.update(settings.module.environment)  # for the process that loads the module
    module = settings.module
    return Order(
        ModuleParameters(str(module.path), module.token_label, module.token_serial, module.arguments),
        tuple(settings.sim_issuers.values()),
        tuple((profile, config.ca_certificate(profile)) for profile in settings.profiles.values()),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="appliance hsm", description="Looks at the HSM in use.")
    commands = parser.add_subparsers(dest="command", required=True)
    purpose = "examine module, token, mechanisms and keys, and try the known attacks with throwaway keys"
    width = max(len(attack.name) for attack in ATTACKS)
    check = commands.add_parser(
        "check",
        help=purpose,
        description=purpose,
        epilog=_EPILOG + "\n".join(f"  {attack.name:<{width}}  {attack.tried}" for attack in ATTACKS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    token = check.add_argument_group("the token", "with --config that of the settings, else one without settings")
    token.add_argument("--config", type=Path, metavar="PATH", help="appliance.toml")
    token.add_argument(
        "--module", type=Path, metavar="PATH", help="a PKCS#11 module; no keys are expected on its token"
    )
    token.add_argument("--token", metavar="LABEL", help="label of the token in --module")
    token.add_argument(
        "--arguments", default="", metavar="TEXT", help="what the module wants of C_Initialize, if anything"
    )
    add_pin_options(check)
    check.add_argument("--json", action="store_true", help="the report as one JSON document")
    check.add_argument(
        "--accept",
        action="append",
        default=[],
        choices=[attack.name for attack in ATTACKS],
        metavar="ATTACK",
        help="an attack that is known to be possible; may be repeated",
    )
    check.add_argument(
        "--limit",
        type=int,
        default=LIMIT_SECONDS,
        metavar="SECONDS",
        help="how long one step may take before the module counts as hung (%(default)s)",
    )
    return parser
