"""Files that a framework starts from, read back as specs and layouts with the place of every flag."""
