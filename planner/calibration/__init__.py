"""From one short real run to factors on predictions: what a run shows, class by class, and what it does not."""
