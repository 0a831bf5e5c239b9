"""Bounds of the document that what is made of it goes by, too. Pure, and without the models: they take long to load."""
from __future__ import annotations

MOST_GROUPS = 8
"""Groups that one NIC can be in: each is one look at a map for a packet that begins a flow."""
