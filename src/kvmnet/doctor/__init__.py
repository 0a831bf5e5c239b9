"""What is broken, with evidence: findings over a capture of the host."""
