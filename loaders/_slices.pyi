from longbatch.loaders.slices import CopySlices

copy_slices: CopySlices
