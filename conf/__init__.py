"""The configuration groups, packaged as `superblock.conf` so that the console script has them too."""
