"""What does one operation cost on this hardware?"""
