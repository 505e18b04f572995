"""The networks: patches, one file an encoder, decoder, pools and heads, and trained models as folders. They take plain
arguments, import `ssamba.ops` and know no recipe; whatever trains, scores or uses models imports them."""
