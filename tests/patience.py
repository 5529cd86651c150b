"""How long tests wait for what comes at once: nothing waits for this to pass, but a hang becomes a
failure that says where. Many times what anything takes on a slow machine that does much else."""

PATIENCE = 60  # seconds
