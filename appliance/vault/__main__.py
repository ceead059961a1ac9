"""`python -m appliance.vault`: one vault, as the supervisor starts it."""

import sys

from appliance.vault.main import main

sys.exit(main())
