"""Spanning trees: RSTP and MSTP of IEEE 802.1Q-2018, clauses 13 and 14. Pure: time is a parameter, frames are bytes.

``Bridge`` takes what happens (a port comes up, a frame comes in, time passes) and returns what is to be done, in an order that
matters: a port is shut before the frame is sent that allows a neighbour to open its own. Names of conditions and flags are
those of the standard, so that it can be read beside it.
"""
