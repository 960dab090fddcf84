from .copy_slices import JoinSlices

join_slices: JoinSlices
