"""The format of shards: their index, how they are found, read, fetched and cached, here or at urls. Imported by both
`ssamba.data` and `ssamba.data.prepare`, and by what uses them; imports neither."""
