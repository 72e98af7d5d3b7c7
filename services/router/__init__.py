"""The router decides what is done about an incident: rules first; what they do not know waits for model or person."""
