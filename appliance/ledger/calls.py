"""Calls by their request_id: the same call again finds what the first one left."""

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, insert, select

from appliance.errors import ApplianceError, Reason
from appliance.ledger.change import Change
from appliance.ledger.schema import requests

_BY_ID = select(requests).where(requests.c.client == bindparam("caller"), requests.c.request_id == bindparam("request"))


@dataclass(frozen=True)
class Call:
    """Who calls, under which UUID, which method of the API, with content of which digest."""

    client: str
    request_id: str
    method: str
    digest: bytes

    def keep(self, change: Change, issuance: str, **columns: Any) -> None:
        """Stores the call; `columns` are those of `requests`."""
        change.connection.execute(
            insert(requests), {**asdict(self), "issuance": issuance, "received": change.now, **columns}
        )


def earlier(connection: Connection, client: str, request_id: str, digest: bytes) -> RowMapping | None:
    """The row of this call if it was seen before; REQUEST_ID_REUSED if it had another content."""
    row = connection.execute(_BY_ID, {"caller": client, "request": request_id}).mappings().first()
    if row is not None and row["digest"] != digest:
        raise ApplianceError(
            Reason.REQUEST_ID_REUSED,
            f"This request_id was used before, for {row['method']}, with other content.",
            hint="Repeat a request unchanged, or give a new one a new UUID.",
            field="request_id",
            request_id=request_id,
        )
    return row
