"""Rules: each a pure function over a capture that yields findings. Its doc string is its page."""
