"""The endpoint inside a bento, the recipes that ship, and the manifests."""
