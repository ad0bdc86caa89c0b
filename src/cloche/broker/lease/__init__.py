"""A worker's claim on the messages it fetched: kept alive, given up, taken over."""
