"""Models, layouts, plans and emitted configurations."""
