"""Reports: the results of a run as one page that opens offline."""
