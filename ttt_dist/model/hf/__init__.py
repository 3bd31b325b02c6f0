"""Model folders and families as Hugging Face knows them."""
