"""Where `streamer produce` takes records from: folders of images, WebDataset tars, Parquet and
img2dataset's outputs."""
