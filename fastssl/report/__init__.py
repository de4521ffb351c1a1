"""What a run leaves to look at: pictures, tables, and a page that opens without a server. Needs the training extra."""
