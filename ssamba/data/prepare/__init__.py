"""What makes and checks shards: recordings, lists, archives, writer, indexing, verification. Imported by data_prep's
scripts and the command line alone; imports `ssamba.data.shards`, and nothing that training reads."""
