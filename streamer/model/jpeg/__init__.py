"""JPEGs that are decoded on the GPU that embeds: everything about it is in this folder.

`decoder.py` is the way in. It asks three things of the GPU: the pixels (`engine.py`, NVIDIA's JPEG
engine), whether the file was whole (`whole.cu`), and the resize (`resize.py` and `resize.cu`, after
the numbers of `streamer.model.geometry`). What any of them does not vouch for is decoded on the CPU.
"""
