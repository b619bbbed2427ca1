"""Signs of life: what is noted and entered later is what was heard."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.watching.signs import first_signs

HOSTS = ("a", "b", "c")
HEARD = st.lists(st.sampled_from([*HOSTS, "stranger"]), max_size=3).map(tuple)


@given(st.lists(st.tuples(HEARD, st.floats(0, 10)), max_size=40))
def test_the_last_sign_of_each_host_is_kept_and_none_is_older_than_said(script):
    signs, plain, now = first_signs(HOSTS, 0.0), dict.fromkeys(HOSTS, 0.0), 0.0
    for hosts, elapsed in script:
        now += elapsed
        signs = signs.add(hosts, now)
        plain.update({host: now for host in hosts if host in plain})
        assert signs.last() == plain
        assert signs.oldest <= min(plain.values())
