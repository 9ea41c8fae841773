"""A folder of ours on its way to the Hub: what goes, one commit, retries, and what is said when it fails."""
