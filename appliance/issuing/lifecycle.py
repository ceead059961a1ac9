"""What the issuer may do to an issuance that exists."""

from collections.abc import Callable

from appliance.domain.issuance import IssuanceRecord
from appliance.domain.request import call_digest, validate_issuance_name, validate_request_id
from appliance.ledger import Ledger


class Lifecycle:
    """Moves issuances.

    Args:
        ledger: where moves are made and recorded.
        content_key: of the digests that tell a repeated request from another one.
        abandoned: the bytes that answer Abandon, made once and then stored.
    """

    def __init__(self, ledger: Ledger, *, content_key: bytes, abandoned: Callable[[IssuanceRecord], bytes]) -> None:
        self._ledger = ledger
        self._content_key = content_key
        self._abandoned = abandoned

    async def abandon(self, client: str, request_id: str, name: str) -> bytes:
        """Ends a RESERVED or READY issuance; answers the same for the first or the hundredth time.

        Raises:
            ApplianceError
        """
        validate_request_id(request_id)
        issuance = validate_issuance_name(name, "name")
        digest = call_digest(self._content_key, "Abandon", issuance.encode())
        return await self._ledger.abandon(client, request_id, digest, issuance, self._abandoned)
