"""Great Expectations on the profile and the samples of a build."""
