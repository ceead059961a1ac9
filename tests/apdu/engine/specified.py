"""What the engine must answer, by the readable Python of `scp03`, `script` and `expanded`."""

from appliance.apdu import scp03, script
from appliance.apdu.engine import Form, Order
from appliance.apdu.expanded import Coding, command_template
from appliance.apdu.scp03 import Mode, SessionKeys
from appliance.api.v1 import delivery_pb2
from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason
from tests.apdu.engine.drawn import Talk

CODINGS = {Form.EXPANDED_DEFINITE: Coding.DEFINITE, Form.EXPANDED_INDEFINITE: Coding.INDEFINITE}


def specified(order: Order) -> script.Script:
    """The script of an order.

    Raises:
        ApplianceError: what is wrong with it.
    """
    _check(order)
    route, keys, card = order.route, SessionKeys(order.enc, order.mac, b""), order.opening
    if order.static:
        if isinstance(card, int):
            card = scp03.card_challenge(order.enc, card, route.ssd_aid, route.mode)
        keys = scp03.derive_session_keys(order.enc, order.mac, order.host_challenge, card)
    if isinstance(card, int):
        card = b""  # without static keys there is nothing that it could follow from
    channel = script.Channel(route.ssd_aid, route.kvn, keys, order.host_challenge, card, route.level, route.mode)
    return script.render(order.package, route.key_type, route.applet_aid, channel)


def written(rendered: script.Script, form: Form) -> bytes | ApplianceError:
    """A script in one of the forms, or why it cannot be written so."""
    if form is Form.TEXT:
        return rendered.text().encode()
    answer = delivery_pb2.FetchScriptResponse()
    if form is Form.COMMANDS:
        for command in rendered.commands:
            answer.commands.add(apdu=command.apdu, expected_status_words=command.expected_sw, purpose=command.purpose)
    else:
        for part in rendered.parts:
            try:
                template = command_template((command.apdu for command in part.addressed), CODINGS[form])
            except ValueError:  # longer than a TLV can be
                return ApplianceError(Reason.FIELD_INVALID, "", hint="", field="package")
            answer.remote_scripts.add(application_aid=part.aid, template=template)
    return answer.SerializeToString(deterministic=True)


def unwrapped(talk: Talk) -> list[bytes | ApplianceError]:
    """The responses in plain, up to the first that is not right."""
    channel, plain = scp03.SecureChannel(talk.keys, talk.level, talk.mode), list[bytes | ApplianceError]()
    channel.external_authenticate(talk.challenge, talk.challenge)
    for command, response in zip(talk.commands[1:], talk.responses, strict=True):
        channel.follow(command)
        try:
            plain.append(channel.unwrap(response))
        except ApplianceError as refusal:
            return [*plain, refusal]
    return plain


def _check(order: Order) -> None:
    """What the specification leaves to its types and its cipher library, in the order in which the engine looks."""
    route, key_sizes = order.route, (16, 24, 32)
    wrong = {
        "enc": len(order.enc) not in key_sizes,
        "mac": len(order.mac) not in key_sizes or len(order.mac) != len(order.enc),
        "key_type": route.key_type not in set(KeyType),
        "mode": route.mode not in set(Mode),
        "sequence_counter": order.static and isinstance(order.opening, int) and not 1 <= order.opening <= 0xFFFFFF,
    }
    for field, is_wrong in wrong.items():
        if is_wrong:
            reason = Reason.KEY_TYPE_INVALID if field == "key_type" else Reason.SCP03_INVALID
            raise ApplianceError(reason, "", hint="", field=field)
