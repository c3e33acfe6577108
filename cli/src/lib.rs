//! The command line: slicectl and kubectl-slice.
