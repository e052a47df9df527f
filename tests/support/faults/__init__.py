"""A running platform is hurt on purpose while clients ask it, and what they were told is held against what it keeps.

A fault is a `Fault`: what is done, and where. The clients (`clients`), the bookkeeping (`ledger`), the proof (`proof`)
and the course of a trial (`trial`) are the same for all.
"""
