"""For all tests: no example of a law is judged by its time, machines are shared; and what they
start takes SIGINT, which a shell makes ignored in what it runs in the background."""

import signal

from hypothesis import settings

signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("glm2-orch", deadline=None)
settings.load_profile("glm2-orch")
