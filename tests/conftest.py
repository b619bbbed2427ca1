"""For all tests: no example of a law is judged by its time; machines are shared."""

from hypothesis import settings

settings.register_profile("glm2-orch", deadline=None)
settings.load_profile("glm2-orch")
