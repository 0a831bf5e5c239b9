"""Taking over what a host has: from its kernel or its configuration files to a document, and back."""
