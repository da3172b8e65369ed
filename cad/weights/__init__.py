"""The published networks that the `paper` profile needs: which, from where, under which licence, and their digests."""
