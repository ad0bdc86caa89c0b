"""What runs inside a worker process: pools, requests, events, heartbeats."""
