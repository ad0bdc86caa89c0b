"""Reaching a broker: its address, connections to it, and what is wrong when it does not answer."""
