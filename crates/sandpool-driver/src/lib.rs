//! The Driver seam.
