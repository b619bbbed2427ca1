"""A rehearsal of faults: a tiny job on a cluster that is all on this machine, and what broke it.

``cluster`` starts real ssh servers, ``standin`` is what runs on their ranks, ``faults`` is the list
of what may happen to it, ``rehearsal`` makes one happen and looks whether it ends as it should.
"""
