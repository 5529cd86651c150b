"""Programs that measure; run them with `make bench`. Not tests: nothing here is timed in CI."""
