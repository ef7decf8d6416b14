"""Things divided into shares among places and ways of use: what lies where, and who works on it."""
