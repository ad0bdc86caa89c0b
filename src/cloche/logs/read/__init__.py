"""Reading the execution log: pages, traces, figures, errors."""
