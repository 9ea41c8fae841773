"""What a run did and what came out of it: records, cards, plots and the page."""
