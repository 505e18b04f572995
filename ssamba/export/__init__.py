"""A trained model as a file for elsewhere: `torch_export` writes a classifier as a program, and `program` runs it. The
command line imports the first, whoever deploys the second, which needs `ssamba.ops` alone."""
