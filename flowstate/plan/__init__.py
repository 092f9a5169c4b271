"""What a flow is: frozen, picklable data that touches no network, no clock and no thread.

`expr` says what is computed from a row, `window` cuts event time, `nodes` are the stages of a flow as the user builds them, each with
its schema; `compile` turns the outputs of a flow into one `JobPlan` (`spec`), which is all that the running parts ever see.
`evaluate` runs a plan's stateless part over record batches: rows whose values make an expression fail are found one by one and
become dead letters, and never take others with them. `position` has the places in a log that everything else hangs on.
"""
