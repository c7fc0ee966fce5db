"""``python -m edge_mdeq.cli``, for where no script is installed."""

from edge_mdeq.cli import main

main()
