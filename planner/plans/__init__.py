"""What a plan says: layouts with their prices, choices beside them, how sure it is, its report."""
