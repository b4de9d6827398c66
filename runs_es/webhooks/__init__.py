"""Webhooks: one POST for a run that has ended, at least once, wherever its terminal fact was written."""
