"""What this machine is, how fast its links are, and the proof that every strategy computes what one device does."""
