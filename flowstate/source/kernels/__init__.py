"""Machine code that reads records: `records` is what is called from outside, the others are its parts."""
