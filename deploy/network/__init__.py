"""The processes of a real federation: the coordinating centre's, a hospital's, and what is asked of them.

    centre      nginx (TLS, client certificates) -> SuperLink on loopback <- superexec -> ServerApp
    hospital    agent <- ClientApp <- superexec -> SuperNode -> nginx (shows the client certificate) -> centre

`serve` and `join` run these programs on one machine and watch them; the programs themselves, with every flag, are
those of `centre.programs` and `hospital.programs`. Flower's own listeners are bound to loopback, its telemetry, update
check and run-time installation are off, and each program has a home folder of its own.
"""
