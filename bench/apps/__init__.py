"""The jobs of the contestants; each module imports only in its contestant's environment.

What a module offers the driver (bench/drive.py), plain or ``async def``:

- ``publish(slot)``: publish a no-op job, the library's ordinary call;
- ``publish_many(slots)``: the same through the library's batch call, where it has one;
- ``publish_sleeps(slots, seconds)``: publish jobs that sleep, the fastest way it has;
- ``connect()``: what must happen before, or ``session()``: an asynchronous context to be in.
"""
