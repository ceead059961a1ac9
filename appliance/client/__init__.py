"""The public API over mutual TLS, as systems of J-LIS and TSMs would use it: one client class a role.

It knows the published messages and nothing of the appliance's inside.
"""

from appliance.client.connection import ApiError, connect
from appliance.client.roles import IssuerClient, OperatorClient, TsmClient

__all__ = ["ApiError", "IssuerClient", "OperatorClient", "TsmClient", "connect"]
