"""How bytes move: the ring in C, and trio streams over it."""
