"""Tells kombu which classes ``cloche+…://`` URLs mean, wherever Cloche is installed.

kombu has no entry point for transports, but it loads those of the group ``kombu.serializers``
when it is imported (end of kombu/serialization.py), in every process that uses it. This is one;
the aliases are written on the way. It is a package of its own so that importing kombu does not
import ``cloche``, which itself imports kombu.
"""

from __future__ import annotations

from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.json import dumps, loads

#: ``cloche`` is what kombu looks up for ``cloche+redis://…``; the long names are what it looks
#: up after switching to another URL of a list (kombu/connection.py, Connection.switch).
ALIASES = (
    "cloche",
    "cloche+redis",
    "cloche+rediss",
    "cloche+sentinel",
    "cloche+sentinels",
    "cloche+socket",
    "cloche+unix",
)

for _alias in ALIASES:
    TRANSPORT_ALIASES.setdefault(_alias, "cloche.broker.transport:Transport")

#: Arguments of kombu.serialization.register: JSON under another content type.
serializer = (dumps, loads, "application/x-cloche+json", "utf-8")
