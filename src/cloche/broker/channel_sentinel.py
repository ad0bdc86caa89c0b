"""The channel for servers found through Sentinel."""

from __future__ import annotations

from typing import Any

import redis
from kombu.transport import redis as stock
from redis.sentinel import Sentinel

from cloche.broker import transport_url
from cloche.broker.channel import Channel


class SentinelChannel(Channel, stock.SentinelChannel):
    """Asks the sentinels of the URL for the master named by the option ``master_name``."""

    connection_class = stock.SentinelChannel.connection_class
    connection_class_ssl = stock.SentinelChannel.connection_class_ssl
    from_transport_options = (
        *Channel.from_transport_options,
        "master_name",
        "min_other_sentinels",
        "sentinel_kwargs",
        "sentinel_fanout_compat",
    )

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> Any:
        # As kombu's, but for addresses behind "cloche+".
        parameters = self._connparams(asynchronous)
        parameters.pop("host", None)
        parameters.pop("port", None)
        master_name = getattr(self, "master_name", None)
        if master_name is None:
            raise ValueError("'master_name' transport option must be specified.")
        addresses = transport_url.sentinels(self.connection.client, self.connection.default_port)
        manager: Any = Sentinel(  # type: ignore[no-untyped-call]
            addresses,
            min_other_sentinels=getattr(self, "min_other_sentinels", 0),
            sentinel_kwargs=getattr(self, "sentinel_kwargs", None),
            **parameters,
        )
        if asynchronous:
            self._async_sentinel_manager = manager
        else:
            self._sentinel_manager = manager
        login = {name: parameters[name] for name in ("username", "password") if name in parameters}
        return manager.master_for(master_name, redis.Redis, **login).connection_pool
