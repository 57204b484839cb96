"""A pytest plugin that puts Sidestep's transport in the place of kombu's: see `scripts.transport_proof`."""

from __future__ import annotations

from kombu.transport import redis as stock
from sidestep_transport.channel import Channel
from sidestep_transport.poller import Poller
from sidestep_transport.qos import QoS
from sidestep_transport.transport import Transport

stock.Channel, stock.Transport, stock.QoS, stock.MultiChannelPoller = Channel, Transport, QoS, Poller
