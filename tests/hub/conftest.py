"""A Hub on loopback and a process that uses it."""

from ..hub_server import client, hub, session_hub  # noqa: F401
