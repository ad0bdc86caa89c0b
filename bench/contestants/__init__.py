"""One file per contestant: a tuple ``CONTESTANTS``. To add one, add a file."""
