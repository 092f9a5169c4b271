"""What flowstate is tested with, shipped to users: naive twins, harnesses and conformance suites. Seeded and replayable."""
