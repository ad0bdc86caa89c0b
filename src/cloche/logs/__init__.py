"""The execution log: what tasks, agents and workflows said, step by step, exactly once."""
