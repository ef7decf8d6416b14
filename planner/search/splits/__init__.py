"""One point after another: its layers dealt to stages, recomputed and offloaded, priced exactly."""
