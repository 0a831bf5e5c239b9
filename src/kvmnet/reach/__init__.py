"""The reachability guard: a change of a way out never cuts the host off."""
