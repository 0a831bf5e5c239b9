"""What a document must hold beyond the form of its parts; one file per subject. Pure."""
