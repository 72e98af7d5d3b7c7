"""The life of an approval: asked for, answered, amended, expired, watched."""
