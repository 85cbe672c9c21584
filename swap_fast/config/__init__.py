"""Configuration as frozen, checked dataclasses: `recipe`, its `phase`s, and `execution`."""
