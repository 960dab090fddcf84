"""Engines that run the stages of a build: threads on one machine, or Spark. Both write the same dataset."""
