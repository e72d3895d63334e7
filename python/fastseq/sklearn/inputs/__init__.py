"""What samples are read from: arrays, lists, frames, datasets in files, columns of categories."""
