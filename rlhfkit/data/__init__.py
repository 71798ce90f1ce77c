"""Reading and writing: JSONL records, tokenizers, token shards, batches."""
