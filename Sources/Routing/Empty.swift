// Written by the commits that follow.
