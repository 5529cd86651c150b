"""How long tests wait for events that come at once: no test waits for this to pass, but a hang
becomes a failure that says where. Many times what any step takes on a slow and busy machine."""

PATIENCE = 60  # seconds
