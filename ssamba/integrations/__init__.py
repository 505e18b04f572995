"""A trained model behind interfaces of others: a module for each of HEAR, X-ARES and s3prl, over `timeline`. Their
programs and users' scripts import them by name; nothing in the package does."""
