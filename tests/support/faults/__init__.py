"""Faults: a running platform is damaged under load, and its answers are compared with what it stored.

A fault is a `Fault`: what is done, and where. The clients (`clients`), the bookkeeping (`ledger`), the proof (`proof`)
and the course of a trial (`trial`) are the same for all.
"""
