"""Schedules: the outer steps of a reconstructor, their first image and their finishing steps."""
