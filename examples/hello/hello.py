"""The ten lines of the README.

Run it:  cloche up -A hello
Use it:  python -c "from hello import greet; print(greet.delay('you').get(timeout=10))"
"""

from __future__ import annotations

from cloche import create_app

app = create_app("hello")


@app.task(name="tasks.hello.greet", autoretry_for=(OSError,))
def greet(name: str) -> str:
    return f"Hello, {name}!"
