"""What is done around a run: conversions, reports, the whole way in one command. In the package it is `ttt_dist.tools`, by a link."""
