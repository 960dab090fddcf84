from longbatch.loaders.copy_slices import JoinSlices

join_slices: JoinSlices
