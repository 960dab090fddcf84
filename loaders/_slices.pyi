from longbatch.loaders.slices import JoinSlices

join_slices: JoinSlices
