"""`bloomery init`: profiles a source and drafts a contract and a recipe."""
