"""The design as a model: its processes over servers kept in memory, one step at a time.

A process is a generator and every `yield` a place where any other may go on, where it may be killed
or paused, or a server restored, flushed, cut. What a step decides is decided by `core`; what is
modelled is who knows what at which moment. `clauses.Clauses` names each rule the design leans on:
with all of them no schedule shows anything wrong, and leaving any one out must be noticed.
"""
