"""Tables, studies and benchmarks: sections of a document, made from stored runs or by measuring."""
