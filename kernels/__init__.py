"""Hot numeric code as pure functions over arrays and tensors: no configuration objects, no files, no Ray."""
