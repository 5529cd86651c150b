"""How long an agent may take to end its side of an attachment. The machine of local mode waits for
it, too, and imports nothing else of attachments, which would make its start longer."""

from __future__ import annotations

# An agent unmounts gracefully, then by force, and then waits for its tools to end and for the
# channel to drain, within 18 s at worst; one that has not answered after this hangs.
STOP_TIMEOUT = 20.0
