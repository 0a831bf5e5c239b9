"""The table of drivers. Adding one is a folder and a line here."""
