"""What each command does, and how its command line is read. Reads top down: parser, then one module a command."""
