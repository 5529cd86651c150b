"""Programs that measure; run them with `make bench`. They are no tests: CI times nothing here."""
