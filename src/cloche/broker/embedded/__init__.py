"""A Redis or Valkey server of our own, with its data in the run directory."""
