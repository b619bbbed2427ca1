"""From logs to the first cause of a failure: what broke first, where, and what to do.

Pure but for ``reading`` and ``folder``, which read log files. The knowledge is data:
``signatures.yaml``.
"""
