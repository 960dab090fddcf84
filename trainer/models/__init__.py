"""The models: a shared interface, token embedding and head, and one file per architecture."""
