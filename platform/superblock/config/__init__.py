"""Every configuration section, a file per group; standard library only."""
