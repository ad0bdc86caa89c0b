"""What runs inside a peer's pytest process. Importable as ``inside``: peers have their own
``tests`` package, so that ours is out of reach there."""
