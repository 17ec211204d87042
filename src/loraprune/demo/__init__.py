"""The model that ships with the package, its corpus, and the run that prunes it."""
