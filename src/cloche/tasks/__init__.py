"""Ready-made task families; each is a package of its own."""
