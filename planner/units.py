"""Units in which bytes are written for people; everywhere else they are whole numbers of bytes."""

MIB, GIB = 1 << 20, 1 << 30
