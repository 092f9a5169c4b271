"""From a reader to the owners: which row goes where (`route`), what is said on the way (`message`), how much may be under way
(`limiter`).

Pure: no sockets and no threads. `runtime` carries the bytes over Arrow Flight, or hands the message over when both ends live in one
process.
"""
