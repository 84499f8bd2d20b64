"""The embedded street scenes, rendered here."""
