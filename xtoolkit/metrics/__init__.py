"""Figures of merit and how sure they are: functions of plain arrays, of no model and no task."""
