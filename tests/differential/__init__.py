"""Random programs, run on stock Celery and on Cloche; whatever a user can observe must be the same.

``make differential`` says how. ``programs`` makes them up, ``project`` is the application that
plays them (the same module on all sides), ``side`` runs its worker and producers, ``story`` turns
what was observed into something that can be compared, ``wanted`` lists what may differ.
"""
