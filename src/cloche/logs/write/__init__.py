"""Writing the execution log: from the call that logs to the rows of the database."""
