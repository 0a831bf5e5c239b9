"""What an error code or a line of a log means, what of it is true on this host, and what mends it. Pure."""
