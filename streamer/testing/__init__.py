"""Supported helpers for the tests of users' own plugins and pipelines: a real broker, topics,
records, small images.

>>> from streamer.testing import Broker, create_topic, jpeg, produce
>>> with Broker() as broker:                                        # extra `broker`; no root, no Docker
...     create_topic(broker.bootstrap_servers, "image-text")
...     produce(broker.bootstrap_servers, "image-text", [(jpeg(seed=1), {"text": "a test image", "id": "1"})])
"""

from streamer.testing.broker import Broker, free_port
from streamer.testing.cluster import Cluster
from streamer.testing.jars import kafka_jars
from streamer.testing.records import Stored, create_topic, jpeg, produce, read_topic

__all__ = [
    "Broker",
    "Cluster",
    "Stored",
    "create_topic",
    "free_port",
    "jpeg",
    "kafka_jars",
    "produce",
    "read_topic",
]
