"""Plans as files that a framework starts from. Emitters are pure: they return text and write nothing."""
